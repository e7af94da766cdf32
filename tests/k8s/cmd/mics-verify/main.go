// Command mics-verify is a tenant with users who verify what they see; see
// tests/k8s/verify. `mics-verify deaf CMD` runs CMD and keeps SIGTERM from it: a
// gateway that is killed instead of drained, for the control.
package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"github.com/mics-im/mics/tests/k8s/verify"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	var err error
	if len(os.Args) > 2 && os.Args[1] == "deaf" {
		err = deaf(os.Args[2], os.Args[3:])
	} else {
		err = run(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "mics-verify:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	v, err := verify.New()
	if err != nil {
		return err
	}
	defer v.Close()
	srv := &http.Server{Addr: ":8090", Handler: v.Handler(), ReadHeaderTimeout: 10 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- srv.ListenAndServe() }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	down, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer cancel()
	if err := srv.Shutdown(down); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// deaf never ends by itself while the command runs.
func deaf(name string, args []string) error {
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}
