// estargz: a tar from stdin as an eStargz blob, by containerd's library; argument: compression level.
package main

import (
	"io"
	"os"
	"strconv"

	"github.com/containerd/stargz-snapshotter/estargz"
)

func main() {
	level, err := strconv.Atoi(os.Args[1])
	if err != nil {
		panic(err)
	}
	file, err := os.Open(os.Args[2])
	if err != nil {
		panic(err)
	}
	info, err := file.Stat()
	if err != nil {
		panic(err)
	}
	blob, err := estargz.Build(io.NewSectionReader(file, 0, info.Size()), estargz.WithCompressionLevel(level))
	if err != nil {
		panic(err)
	}
	if _, err := io.Copy(os.Stdout, blob); err != nil {
		panic(err)
	}
	if err := blob.Close(); err != nil {
		panic(err)
	}
}
