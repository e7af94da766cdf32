// Command history is a tenant's chat history in one small program: it stores in
// SQLite what the cluster publishes on Kafka, and gives users what they missed
// when they connect (get-offline-messages). README.md tells how to try it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

func main() {
	var c config
	flag.StringVar(&c.listen, "listen", "127.0.0.1:8090", "address for the cluster's hooks and for /history")
	flag.StringVar(&c.database, "db", "history.db", "SQLite file")
	flag.StringVar(&c.tenant, "tenant", "demo", "name of the tenant")
	flag.BoolVar(&c.trusting, "trusting", false, "let everybody in whose token is `user:NAME`: for trying it out")
	brokers := flag.String("brokers", "127.0.0.1:9092", "Kafka brokers, comma-separated")
	flag.Parse()
	c.brokers = strings.Split(*brokers, ",")
	c.secret = os.Getenv("TENANT_SECRET") // not a flag: others see those
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, c, slog.Default()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type config struct {
	listen, database, tenant, secret string
	brokers                          []string
	trusting                         bool
	kafka                            []kgo.Opt    // more options of the Kafka client
	listener                         net.Listener // instead of listen
}

// run serves and consumes until ctx ends.
func run(ctx context.Context, c config, log *slog.Logger) (err error) {
	if c.secret == "" {
		return errors.New("TENANT_SECRET: required: what the cluster signs this tenant's hooks and events with")
	}
	db, err := openStore(ctx, c.database)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.close()) }()
	hooks, err := newHooks(db, c, log)
	if err != nil {
		return err
	}
	if c.listener == nil {
		if c.listener, err = net.Listen("tcp", c.listen); err != nil {
			return err
		}
	}
	events, err := newConsumer(db, c, log)
	if err != nil {
		return errors.Join(err, c.listener.Close())
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	srv := &http.Server{Handler: hooks, ReadHeaderTimeout: 5 * time.Second}
	var wg sync.WaitGroup
	wg.Go(func() { cancel(srv.Serve(c.listener)) })
	wg.Go(func() { cancel(events.run(ctx)) })
	log.Info("started", "listen", c.listener.Addr().String(), "tenant", c.tenant)
	<-ctx.Done()
	stopping, done := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer done()
	err = srv.Shutdown(stopping)
	wg.Wait()
	if why := context.Cause(ctx); !errors.Is(why, context.Canceled) && !errors.Is(why, http.ErrServerClosed) {
		err = errors.Join(err, why)
	}
	return err
}
