package cli

import (
	"fmt"
	"io"

	"github.com/mics-im/mics/ctl/internal/output"
)

// Warn writes each warning on a line of w. Warnings go to the error stream,
// also when the document on the other one has them, so that a person who pipes
// it somewhere sees them.
func Warn(w io.Writer, warnings []string) error {
	for _, s := range warnings {
		if _, err := fmt.Fprintf(w, "Warning: %s\n", output.Clean(s)); err != nil {
			return err
		}
	}
	return nil
}
