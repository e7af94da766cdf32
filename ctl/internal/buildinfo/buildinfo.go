// Package buildinfo holds what the linker knows about this build.
package buildinfo

import "runtime/debug"

// version is set at link time:
//
//	go build -ldflags "-X github.com/mics-im/mics/ctl/internal/buildinfo.version=v1.2.3"
var version string

// Version returns the version of this build: the linker's if it was given one,
// else the module's, else "dev". It is never empty.
func Version() string {
	if version != "" {
		return version
	}
	if bi, ok := debug.ReadBuildInfo(); ok && bi.Main.Version != "" && bi.Main.Version != "(devel)" {
		return bi.Main.Version
	}
	return "dev"
}
