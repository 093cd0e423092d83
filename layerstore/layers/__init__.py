"""Floor 3: blobs, tars and the files in them. Knows tar and filesystems, knows no images.

In: `ingest` (bytes to a staged blob, by way of `inflate` for a look into compressed layers). Out:
`assemble` (a blob's bytes again, verified), `entries` (the files of a layer). `content` is the face
that the floors above use.
"""
