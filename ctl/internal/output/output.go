// Package output writes results: tables for people, JSON and YAML for programs.
//
// JSON and YAML carry the same document. Its names are lowerCamel, its times
// RFC 3339 in UTC, its numbers numbers (incarnations, which may exceed 2^53,
// are strings), its lists never null. Fields are only ever added.
package output

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode"

	"sigs.k8s.io/yaml"
)

// Format is a way to write a result.
type Format string

// The formats of -o.
const (
	Table Format = "table"
	JSON  Format = "json"
	YAML  Format = "yaml"
)

// Formats lists the allowed values of -o.
func Formats() []string { return []string{string(Table), string(JSON), string(YAML)} }

// ParseFormat checks a value of -o.
func ParseFormat(s string) (Format, error) {
	switch f := Format(s); f {
	case Table, JSON, YAML:
		return f, nil
	}
	return "", fmt.Errorf("%q: want one of %s", s, strings.Join(Formats(), ", "))
}

// Printer writes results to W.
type Printer struct {
	W      io.Writer
	Format Format
}

// Print writes doc as JSON or YAML, or calls table for the table.
func (p *Printer) Print(doc any, table func(io.Writer) error) error {
	switch p.Format {
	case JSON:
		b, err := json.MarshalIndent(doc, "", "  ")
		if err != nil {
			return fmt.Errorf("write JSON: %w", err)
		}
		_, err = p.W.Write(append(b, '\n'))
		return err
	case YAML:
		b, err := yaml.Marshal(doc)
		if err != nil {
			return fmt.Errorf("write YAML: %w", err)
		}
		_, err = p.W.Write(b)
		return err
	}
	return table(p.W)
}

// PrintItem writes doc as one item of a stream: a line of JSON, a document of
// YAML, or what table writes.
func (p *Printer) PrintItem(doc any, table func(io.Writer) error) error {
	switch p.Format {
	case JSON:
		b, err := json.Marshal(doc)
		if err != nil {
			return fmt.Errorf("write JSON: %w", err)
		}
		_, err = p.W.Write(append(b, '\n'))
		return err
	case YAML:
		if _, err := io.WriteString(p.W, "---\n"); err != nil {
			return err
		}
	}
	return p.Print(doc, table)
}

// WriteTable writes aligned columns. Every cell is cleaned.
func WriteTable(w io.Writer, header []string, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	for _, row := range append([][]string{header}, rows...) {
		cells := make([]string, len(row))
		for i, c := range row {
			if cells[i] = Clean(c); c == "" {
				cells[i] = "-"
			}
		}
		_, _ = fmt.Fprintln(tw, strings.Join(cells, "\t"))
	}
	return tw.Flush()
}

// Clean makes s safe to print on a terminal. Names of users and devices are
// chosen by strangers: without this, one could hold an escape sequence.
func Clean(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0 {
		return s
	}
	q := strconv.Quote(s)
	return strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)
}
