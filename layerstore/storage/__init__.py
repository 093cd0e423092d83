"""Floor 2: bytes that stay. Knows chunks, blocks, packs, blobs, refs and leases; knows no images.

Follow a put through these rooms: `operation` (epoch, staging, commit) -> `sink` (which chunks are
new) -> `known` (dedup look-ups) -> `blocks` (a block's bytes) -> `packs` (where blocks lie) ->
`index` (LMDB and the single commit point) -> `journal` (the record from which the index can be made
anew). Reading goes `reading` -> `index` -> `packs` -> `blocks`. `disk` is the seam through which
every write, sync, rename and unlink goes.
"""
