"""Completion scripts for bash, zsh and fish, made from the table of verbs.

Each script knows verbs, options and what an argument is; names of images, digests and leases it asks
of `layerstore` itself when they are wanted (`images -q`, `blob ls -q`, ...).
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator

from .verbs import VERBS
from .words import GLOBAL, Argument, Verb

TRANSPORTS = ("oci:", "oci-archive:", "docker-archive:", "docker://")
_ASK = {
    "image": "images -q",
    "digest": "blob ls -q",
    "lease": "lease ls -q",
    "snapshot": "snapshot ls -q",
}


def script(shell: str) -> str:
    """The completion script for bash, zsh or fish."""
    makers: dict[str, Callable[[], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
    return makers[shell]()


def _walk(verbs: tuple[Verb, ...] = VERBS, before: str = "") -> Iterator[tuple[str, Verb]]:
    """Every verb and group with its words: `import`, `blob`, `blob cat`."""
    for verb in verbs:
        path = f"{before} {verb.name}".strip()
        yield path, verb
        yield from _walk(verb.verbs, path)


def _options(verb: Verb) -> list[Argument]:
    return [a for a in (*verb.arguments, *GLOBAL) if a.is_option]


def _names(options: list[Argument]) -> str:
    return " ".join(name for a in options for name in a.names) + " --help"


def _kind(argument: Argument) -> str:
    """What may stand there, as the scripts know it: `words a b`, image, file, ... or nothing."""
    return (
        "words " + " ".join(argument.choices) if argument.choices else argument.takes or "nothing"
    )


def _positional_kinds(verb: Verb) -> list[str]:
    """The kinds of a verb's arguments in order; the last one repeated for ever where it may be."""
    if verb.name == "export":
        return ["image-or-transport"] * 2
    found = []
    for argument in verb.arguments:
        if not argument.is_option:
            found.append(_kind(argument))
            if argument.nargs == "+":
                found.append(_kind(argument))
    return found


def _cases() -> tuple[str, str, str, str]:
    """The four tables that bash and zsh share, as branches of `case`: verbs after these words,
    options of a verb, what an option takes, and what a verb's argument number N is."""
    verbs = {"": VERBS, **{path: verb.verbs for path, verb in _walk() if verb.verbs}}
    options = {"": _names(list(GLOBAL))}
    takes: dict[str, str] = {}
    arguments: dict[str, str] = {}
    for path, verb in _walk():
        options[path] = _names(_options(verb))
        for argument in _options(verb):
            if not argument.flag:
                takes.update({name: _kind(argument) for name in argument.names})
        kinds = _positional_kinds(verb)
        for n, kind in enumerate(kinds):
            last = n == len(kinds) - 1 and n > 0 and kinds[n - 1] == kind
            arguments[f"{path} {n}"] = kind
            if last:
                arguments[f"{path} "] = kind

    def branches(table: dict[str, str]) -> str:
        lines = []
        for key, value in table.items():
            pattern = f'"{key}"*' if key.endswith(" ") else f'"{key}"'
            lines.append(f'        {pattern}) echo "{value}" ;;')
        return "\n".join(lines)

    return (
        branches({path: " ".join(v.name for v in below) for path, below in verbs.items()}),
        branches(options),
        branches(takes),
        branches(arguments),
    )


_SHARED = """
_layerstore_verbs() {{
    case "$1" in
{verbs}
    esac
}}
_layerstore_options() {{
    case "$1" in
{options}
    esac
}}
_layerstore_takes() {{
    case "$1" in
{takes}
    esac
}}
_layerstore_argument() {{
    case "$1" in
{arguments}
        *) echo nothing ;;
    esac
}}
# Reads the words before the cursor: verb, count of arguments, option that wants a value, where.
_layerstore_read() {{
    local word
    verb="" count=0 option="" where=()
    for word in "$@"; do
        if [ -n "$option" ]; then
            if [ "$option" = --store ]; then where=(--store "$word"); fi
            option=""
        elif [ "${{word#-}}" != "$word" ] && [ "$word" != - ]; then
            if [ -n "$(_layerstore_takes "$word")" ]; then option="$word"; fi
        elif [ -n "$(_layerstore_verbs "$verb")" ]; then
            verb="${{verb:+$verb }}$word"
        else
            count=$((count + 1))
        fi
    done
}}
# What may stand at the cursor, for the word $1.
_layerstore_kind() {{
    if [ -n "$option" ]; then _layerstore_takes "$option"
    elif [ "${{1#-}}" != "$1" ]; then echo "words $(_layerstore_options "$verb")"
    elif [ -n "$(_layerstore_verbs "$verb")" ]; then echo "words $(_layerstore_verbs "$verb")"
    else _layerstore_argument "$verb $count"
    fi
}}
_layerstore_ask() {{
    case "$1" in
{ask}
    esac
}}
"""


def _shared() -> str:
    verbs, options, takes, arguments = _cases()
    asked = [
        *((kind, verb) for kind, verb in _ASK.items()),
        ("image-or-transport", _ASK["image"]),
    ]
    ask = "\n".join(
        f'        {kind}) command layerstore "${{where[@]}}" {verb} 2>/dev/null ;;'
        for kind, verb in asked
    )
    return _SHARED.format(verbs=verbs, options=options, takes=takes, arguments=arguments, ask=ask)


def _bash() -> str:
    return (
        "# bash completion for layerstore: source <(layerstore completion bash)"
        + _shared()
        + f"""_layerstore() {{
    local verb count option where words cur kind candidates colon item
    # Not COMP_WORDS: bash cuts words at colons, and ours are full of them.
    read -ra words <<<"${{COMP_LINE:0:COMP_POINT}}"
    case "${{COMP_LINE:0:COMP_POINT}}" in *[[:space:]]) words+=("") ;; esac
    cur="${{words[${{#words[@]}} - 1]}}"
    _layerstore_read "${{words[@]:1:${{#words[@]}}-2}}"
    kind="$(_layerstore_kind "$cur")"
    candidates=()
    case "$kind" in
        words\\ *) mapfile -t candidates < <(compgen -W "${{kind#words }}" -- "$cur") ;;
        file) mapfile -t candidates < <(compgen -f -- "$cur") ;;
        directory) mapfile -t candidates < <(compgen -d -- "$cur") ;;
    esac
    case "$kind" in image|digest|lease|snapshot|image-or-transport)
        while IFS= read -r item; do
            case "$item" in "$cur"*) candidates+=("$item") ;; esac
        done < <(_layerstore_ask "$kind") ;;
    esac
    case "$kind" in transport|image-or-transport)
        case "$cur" in
            {"|".join(f"{t}*" for t in TRANSPORTS)})
                compopt -o filenames 2>/dev/null
                while IFS= read -r item; do candidates+=("${{cur%%:*}}:$item"); done \\
                    < <(compgen -f -- "${{cur#*:}}") ;;
            *)
                compopt -o nospace 2>/dev/null
                for item in {" ".join(TRANSPORTS)}; do
                    case "$item" in "$cur"*) candidates+=("$item") ;; esac
                done ;;
        esac ;;
    esac
    COMPREPLY=()
    colon=""
    case "$COMP_WORDBREAKS" in *:*) colon="${{cur%"${{cur##*:}}"}}" ;; esac
    for item in "${{candidates[@]}}"; do COMPREPLY+=("${{item#"$colon"}}"); done
}}
complete -F _layerstore layerstore
"""
    )


def _zsh() -> str:
    return (
        "#compdef layerstore\n# zsh completion for layerstore: "
        'layerstore completion zsh > "${fpath[1]}/_layerstore"'
        + _shared()
        + f"""_layerstore() {{
    local verb count option kind
    local -a where candidates
    _layerstore_read "${{(@)words[2,CURRENT-1]}}"
    kind="$(_layerstore_kind "${{words[CURRENT]}}")"
    case "$kind" in
        words\\ *) candidates=(${{=kind#words }}); compadd -- $candidates ;;
        file) _files ;;
        directory) _files -/ ;;
    esac
    case "$kind" in image|digest|lease|snapshot|image-or-transport)
        candidates=(${{(f)"$(_layerstore_ask "$kind")"}}); compadd -- $candidates ;;
    esac
    case "$kind" in transport|image-or-transport)
        case "${{words[CURRENT]}}" in
            {"|".join(f"{t}*" for t in TRANSPORTS)}) compset -P 1 '*:'; _files ;;
            *) compadd -S '' -- {" ".join(TRANSPORTS)} ;;
        esac ;;
    esac
}}
if [ "$funcstack[1]" = _layerstore ]; then _layerstore "$@"; else compdef _layerstore layerstore; fi
"""
    )


def _fish() -> str:
    groups = [path for path, verb in _walk() if verb.verbs]
    values = sorted(
        {name for _, v in _walk() for a in _options(v) if not a.flag for name in a.names}
    )
    lines = [
        "# fish completion for layerstore: "
        "layerstore completion fish > ~/.config/fish/completions/layerstore.fish",
        "function __layerstore_verb",
        "    set -l verb",
        "    set -l value no",
        "    for word in (commandline -opc)[2..-1]",
        "        if test $value = yes",
        "            set value no",
        f"        else if contains -- $word {' '.join(values)}",
        "            set value yes",
        "        else if string match -q -- '-*' $word",
        "            continue",
        f'        else if test -z "$verb"; or contains -- "$verb" {" ".join(groups)}',
        '            set verb (string trim -- "$verb $word")',
        "        end",
        "    end",
        '    echo "$verb"',
        "end",
        "function __layerstore_in",
        '    test (__layerstore_verb) = "$argv"',
        "end",
        "complete -c layerstore -f",
    ]
    for path, verb in _walk():
        before, _, name = path.rpartition(" ")
        lines.append(_complete(before, f"-a {name}", verb.help))
        for argument in verb.arguments if not verb.verbs else ():
            if not argument.is_option:
                lines.append(_complete(path, _fish_values(argument, verb), argument.help))
        for argument in _options(verb):
            lines.append(_complete(path, _fish_option(argument), argument.help))
    lines.extend(_complete("", _fish_option(argument), argument.help) for argument in GLOBAL)
    return "\n".join(lines) + "\n"


def _complete(path: str, what: str, help: str) -> str:
    condition = shlex.quote(f"__layerstore_in {path or shlex.quote(path)}")
    return f"complete -c layerstore -n {condition} {what} -d {shlex.quote(help)}".replace("  ", " ")


def _fish_option(argument: Argument) -> str:
    names = " ".join(
        f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in argument.names
    )
    return names if argument.flag else f"{names} -x {_fish_values(argument)}"


def _fish_values(argument: Argument, verb: Verb | None = None) -> str:
    if argument.choices:
        return f"-a {shlex.quote(' '.join(argument.choices))}"
    if argument.takes == "file":
        return "-F"
    if argument.takes == "directory":
        return "-a '(__fish_complete_directories)'"
    if argument.takes == "transport":
        return f"-a {shlex.quote(' '.join(TRANSPORTS))}"
    if argument.takes in _ASK:
        more = " " + " ".join(TRANSPORTS) if verb is not None and verb.name == "export" else ""
        return f"-a '(command layerstore {_ASK[argument.takes]} 2>/dev/null){more}'"
    return ""
