package mics_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"time"

	mics "github.com/mics-im/mics/sdk/go"
)

// An application that prints what it receives and sends one message.
func Example() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()

	c, err := mics.New(mics.Options{
		URLs:   []string{"ws://127.0.0.1:8080/ws"},
		Tenant: "demo",
		Device: "laptop",
		Token:  func(context.Context) (string, error) { return "valid:ann", nil },
		OnDelivery: func(d *mics.Delivery) {
			fmt.Printf("%s: %s\n", d.From, d.Body)
		},
		OnState: func(s mics.State) {
			log.Printf("%s %s %v", s.Phase, s.Node, s.Err)
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = c.Close(context.Background()) }()

	if err := c.Connect(ctx); err != nil {
		log.Print(err)
		return
	}

	sendCtx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	ack, err := c.Send(sendCtx, mics.Message{To: "bob", Body: []byte("hello")})
	var refused *mics.SendError
	switch {
	case errors.As(err, &refused):
		log.Printf("not delivered: %s", refused.Reason)
	case err != nil:
		log.Printf("outcome of %s unknown: %v", ack.ID, err)
	default:
		log.Printf("sent %s", ack.ID)
	}

	select {
	case <-ctx.Done():
	case <-c.Done(): // replaced, kicked, ...
		log.Print(c.Err())
	}
}
