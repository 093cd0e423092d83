// klauspost.go: klauspost's gzip ("gzip LEVEL") or pgzip ("pgzip LEVEL BLOCK"): standard input to output.
package main

import (
	"io"
	"log"
	"os"
	"strconv"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/pgzip"
)

func main() {
	level, err := strconv.Atoi(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	var w io.WriteCloser
	if os.Args[1] == "pgzip" {
		p, err := pgzip.NewWriterLevel(os.Stdout, level)
		if err != nil {
			log.Fatal(err)
		}
		block, err := strconv.Atoi(os.Args[3])
		if err != nil {
			log.Fatal(err)
		}
		if err := p.SetConcurrency(block, 2); err != nil {
			log.Fatal(err)
		}
		w = p
	} else {
		g, err := gzip.NewWriterLevel(os.Stdout, level)
		if err != nil {
			log.Fatal(err)
		}
		w = g
	}
	if _, err := io.Copy(w, os.Stdin); err != nil {
		log.Fatal(err)
	}
	if err := w.Close(); err != nil {
		log.Fatal(err)
	}
}
