package load

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"time"
)

// Child is another process of this program. It reads orders as JSON values from
// standard input, answers on standard output, and ends when its input does. It is for
// one goroutine.
type Child struct {
	// Orders takes what it is to do, Answers gives what it says to that.
	Orders  *json.Encoder
	Answers *json.Decoder

	cmd *exec.Cmd
	in  io.WriteCloser
}

// StartChild runs self with a command and gives it its first order. The process is killed
// when ctx ends; it must be given to End.
func StartChild(ctx context.Context, self, command string, first any) (*Child, error) {
	cmd := exec.CommandContext(ctx, self, command)
	cmd.Stderr = os.Stderr
	cmd.WaitDelay = time.Second
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &Child{cmd: cmd, in: in, Orders: json.NewEncoder(in), Answers: json.NewDecoder(bufio.NewReader(out))}
	if err := c.Orders.Encode(first); err != nil {
		End(c)
		return nil, err
	}
	return c, nil
}

// End has processes end, all at once, and waits for them.
func End(children ...*Child) {
	for _, c := range children {
		_ = c.in.Close()
	}
	for _, c := range children {
		_ = c.cmd.Wait() // its errors have been answers
	}
}
