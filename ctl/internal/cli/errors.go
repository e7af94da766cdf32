package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/mics-im/mics/ctl/internal/output"
)

// Exit codes of micsctl. Scripts depend on them.
const (
	ExitOK = 0
	// ExitFailure: the command was understood and did not succeed: no answer,
	// a refusal, a failed check, nothing to kick.
	ExitFailure = 1
	// ExitUsage: the command line is wrong; nothing was asked of the cluster.
	ExitUsage = 2
	// ExitLimit: it was done, and missed a limit given on the command line.
	ExitLimit = 3
)

// usageError marks what the person at the keyboard has to write differently.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// Usage marks err as a mistake on the command line.
func Usage(err error) error { return usageError{err} }

// limitError marks a limit that was missed.
type limitError struct{ error }

func (e limitError) Unwrap() error { return e.error }

// Missed marks err as a limit that was missed.
func Missed(err error) error { return limitError{err} }

// runError marks an error as coming from a command that did run; whatever cobra
// itself returns (an unknown flag, a missing argument) is not marked.
type runError struct{ error }

func (e runError) Unwrap() error { return e.error }

// ErrReported is returned by a command that has already printed why it failed.
var ErrReported = errors.New("failed")

// Run adapts a command's function for cobra.
func Run(f func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := f(cmd.Context(), args); err != nil {
			return runError{err}
		}
		return nil
	}
}

// ExitCode maps what a root command returned.
func ExitCode(err error) int {
	var ran runError
	var usage usageError
	var limit limitError
	switch {
	case err == nil:
		return ExitOK
	case errors.As(err, &limit):
		return ExitLimit
	case errors.As(err, &usage), !errors.As(err, &ran):
		return ExitUsage
	}
	return ExitFailure
}

// Explain renders err for a person, with what to do next where that is known.
// It is empty for an error that has been reported.
func (a *App) Explain(err error) string {
	if err == nil || errors.Is(err, ErrReported) {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Error: %s\n", output.Clean(Message(err)))
	if hint := a.hint(err); hint != "" {
		fmt.Fprintf(&b, "%s\n", hint)
	}
	return b.String()
}

// Message renders err in one line; of an answer of the control plane, what it
// said before what kind of failure it is.
func Message(err error) string {
	var ce *connect.Error
	if errors.As(err, &ce) && ce.Message() != "" {
		return fmt.Sprintf("%s (%s)", ce.Message(), ce.Code())
	}
	return err.Error()
}

// hint tells what to do about err; empty when there is nothing better to say
// than the error itself.
func (a *App) hint(err error) string {
	if ExitCode(err) == ExitUsage {
		return "Run 'micsctl --help' or 'micsctl COMMAND --help' for usage."
	}
	at := fmt.Sprintf("the control plane at %s", output.Clean(a.Endpoint))
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Sprintf("Nothing listens there: is %s running? Set --endpoint or %s if it lives elsewhere.", at, EndpointEnv)
	case errors.Is(err, context.DeadlineExceeded), connect.CodeOf(err) == connect.CodeDeadlineExceeded:
		return fmt.Sprintf("No answer from %s within %v: raise --timeout, or check the network in between.", at, a.Timeout)
	}
	switch connect.CodeOf(err) {
	case connect.CodeUnimplemented:
		return fmt.Sprintf("Is it really %s, and at least as new as this micsctl? Compare with 'micsctl version'.", at)
	case connect.CodeUnavailable:
		return fmt.Sprintf("Could not reach %s: set --endpoint or %s, and see 'micsctl check'.", at, EndpointEnv)
	case connect.CodeNotFound:
		return "See 'micsctl nodes' for the nodes that there are."
	case connect.CodeUnauthenticated:
		if a.TokenFile == "" && a.Cert == "" {
			return fmt.Sprintf("Say who you are: --token-file or %s, or --cert and --key. Operators are named in the control plane's OPERATORS_FILE.", TokenFileEnv)
		}
		return "Is it the token (or certificate) that the control plane's OPERATORS_FILE has for you? See docs/operations.md#operators."
	case connect.CodePermissionDenied:
		return "Your role does not allow it: ask for the role operator in the control plane's OPERATORS_FILE."
	case connect.CodeInternal:
		return "The control plane's log says more."
	}
	return ""
}
