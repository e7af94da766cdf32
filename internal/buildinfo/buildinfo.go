// Package buildinfo knows the version of the running binary.
package buildinfo

import "runtime/debug"

// version is set by the linker: -X …/internal/buildinfo.version=v1.2.3.
var version string

// Version returns the linked version, else the main module's, else "dev".
func Version() string {
	if version != "" {
		return version
	}
	if bi, ok := debug.ReadBuildInfo(); ok && bi.Main.Version != "" && bi.Main.Version != "(devel)" {
		return bi.Main.Version
	}
	return "dev"
}
