"""Floor 4: images. Knows manifests, layouts, archives and names; how bytes are kept is floor 3's.

`jsonio` and `model` read documents, `references` and `transports` read what a user types. A
`sources.Source` gives documents and blobs out of a layout directory (`layout`), a tar (`archive`) or
docker's own tar (`docker`); `plan` walks its documents, `importing` takes what the plan names.
`exporting` goes the other way. `images` answers what the store knows of an image.
"""
