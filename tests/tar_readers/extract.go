// Extracts the archive on standard input into the working directory, as programs in Go do that use archive/tar.
package main

import (
	"archive/tar"
	"io"
	"log"
	"os"
	"path/filepath"
)

func main() {
	reader := tar.NewReader(os.Stdin)
	for {
		header, err := reader.Next()
		if err == io.EOF {
			return
		}
		check(err)
		path := filepath.Clean(header.Name)
		check(os.MkdirAll(filepath.Dir(path), 0o755))
		switch header.Typeflag {
		case tar.TypeDir:
			check(os.MkdirAll(path, 0o755))
		case tar.TypeReg:
			file, err := os.Create(path)
			check(err)
			_, err = io.Copy(file, reader)
			check(err)
			check(file.Close())
		case tar.TypeSymlink:
			check(os.Symlink(header.Linkname, path))
		case tar.TypeLink:
			check(os.Link(filepath.Clean(header.Linkname), path))
		}
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
