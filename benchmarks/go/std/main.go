// compress/gzip of the toolchain that builds it, timed: main FILE LEVEL OUT. Encodes the file from memory,
// writes what came out to OUT, prints the seconds of CPU time that encoding took. It runs on one thread.
package main

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"log"
	"os"
	"runtime"
	"strconv"
	"syscall"
)

// cpu is what the process has used so far, in seconds.
func cpu() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		log.Fatal(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

func main() {
	runtime.GOMAXPROCS(1)
	content, err := os.ReadFile(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	level, err := strconv.Atoi(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	out := bytes.NewBuffer(make([]byte, 0, len(content)+len(content)/8+1024))
	start := cpu()
	w, err := gzip.NewWriterLevel(out, level)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		log.Fatal(err)
	}
	if err := w.Close(); err != nil {
		log.Fatal(err)
	}
	fmt.Println(cpu() - start)
	if err := os.WriteFile(os.Args[3], out.Bytes(), 0o600); err != nil {
		log.Fatal(err)
	}
}
