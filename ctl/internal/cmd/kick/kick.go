// Package kick is `micsctl kick`.
package kick

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/mics-im/mics/ctl/internal/cli"
	"github.com/mics-im/mics/ctl/internal/output"
	"github.com/mics-im/mics/ctl/internal/view"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
)

// maxReason is what fits into a close frame beside the code (RFC 6455, section 5.5).
const maxReason = 123

// Options are the inputs of the command.
type Options struct {
	*cli.App
	Tenant, User, Device string
	Reason               string
	Yes                  bool
}

// NewCmd returns the command.
func NewCmd(app *cli.App) *cobra.Command {
	o := &Options{App: app}
	cmd := &cobra.Command{
		Use:   "kick --tenant TENANT --user USER",
		Short: "End a user's connections",
		Long: `End a user's connections with close code 4409, after which clients do not
reconnect by themselves. It keeps nobody out: that is for the tenant's auth hook.

On a terminal it asks first; elsewhere --yes is required. The exit code is 1 when
there was nothing to kick or when a gateway could not be asked.`,
		Example: `  micsctl kick --tenant demo --user alice
  micsctl kick --tenant demo --user alice --device phone --reason "password changed" --yes`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              cli.Run(func(ctx context.Context, _ []string) error { return o.run(ctx) }),
	}
	f := cmd.Flags()
	f.StringVar(&o.Tenant, "tenant", "", "the user's tenant (required)")
	f.StringVar(&o.User, "user", "", "the user (required)")
	f.StringVar(&o.Device, "device", "", "only this device; default: every device of the user")
	f.StringVar(&o.Reason, "reason", "kicked", fmt.Sprintf("text of the close frame, at most %d bytes", maxReason))
	f.BoolVarP(&o.Yes, "yes", "y", false, "do not ask")
	for _, name := range []string{"tenant", "user", "device", "reason"} {
		cli.CompleteFlag(cmd, name, cobra.NoFileCompletions)
	}
	return cmd
}

func (o *Options) validate() error {
	switch {
	case o.Tenant == "":
		return errors.New("--tenant: required")
	case o.User == "":
		return errors.New("--user: required")
	case len(o.Reason) > maxReason:
		return fmt.Errorf("--reason: %d bytes: want at most %d", len(o.Reason), maxReason)
	case !o.Yes && !o.InTTY:
		return errors.New("--yes: required when there is no terminal to ask on")
	}
	return nil
}

func (o *Options) run(ctx context.Context) error {
	printer, err := o.Printer()
	if err != nil {
		return err
	}
	if err := o.validate(); err != nil {
		return cli.Usage(err)
	}
	client, err := o.Client()
	if err != nil {
		return err
	}
	if !o.Yes {
		ok, err := o.confirm(ctx)
		if err != nil {
			return err
		}
		if !ok {
			return errors.New("not confirmed: nobody was kicked")
		}
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	res, err := client.Kick(ctx, connect.NewRequest(&controlv1.KickRequest{
		TenantId: o.Tenant, UserId: o.User, DeviceId: o.Device, Reason: o.Reason,
	}))
	if err != nil {
		return err
	}
	doc := view.NewKick(res.Msg)
	err = printer.Print(doc, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "Kicked %s of %s.\n", output.Count(uint64(doc.Kicked), "connection"), o.who())
		return err
	})
	if err != nil {
		return err
	}
	if err := cli.Warn(o.Err, doc.Warnings); err != nil {
		return err
	}
	switch {
	case len(doc.Warnings) > 0:
		return errors.New("not every gateway could be asked: see 'micsctl check', then kick again")
	case doc.Kicked == 0:
		return errors.New("no such connection: see 'micsctl sessions'")
	}
	return nil
}

// who names what is kicked, cleaned.
func (o *Options) who() string {
	s := fmt.Sprintf("user %s of tenant %s", o.User, o.Tenant)
	if o.Device != "" {
		s = fmt.Sprintf("device %s of %s", o.Device, s)
	}
	return output.Clean(s)
}

// confirm asks at the terminal. Only y or yes is a yes; the end of the input is
// a no. An interrupt (ctx) ends the wait with an error; the goroutine that
// reads goes on until its line comes, which a process about to exit can afford.
func (o *Options) confirm(ctx context.Context) (bool, error) {
	if _, err := fmt.Fprintf(o.Err, "End every connection of %s? [y/N] ", o.who()); err != nil {
		return false, err
	}
	line := make(chan string, 1)
	go func() {
		s, _ := bufio.NewReader(o.In).ReadString('\n') // an error leaves what was typed, and nothing is a no
		line <- s
	}()
	select {
	case <-ctx.Done():
		return false, ctx.Err()
	case s := <-line:
		s = strings.ToLower(strings.TrimSpace(s))
		return s == "y" || s == "yes", nil
	}
}
