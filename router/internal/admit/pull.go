package admit

import (
	"context"
	"time"

	"github.com/mics-im/mics/internal/frame"
	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	"github.com/mics-im/mics/router/internal/dispatch"
	"google.golang.org/protobuf/proto"
)

// Pages of get-offline-messages (CONTRACT section 2).
const (
	pageSize = 100
	maxPages = 10
	// pageTimeout bounds the wait until a page has been delivered; then the next
	// one is not fetched.
	pageTimeout = 10 * time.Second
)

// pull brings what the tenant keeps for the device, without delaying its
// connect.
func (a *Admitter) pull(o opening) {
	select {
	case a.pulls <- struct{}{}:
	default:
		a.opts.Stats.PullsSkipped.Inc()
		return
	}
	a.wg.Go(func() {
		defer func() { <-a.pulls }()
		a.pullPages(a.ctx, o)
	})
}

func (a *Admitter) pullPages(ctx context.Context, o opening) {
	cursor := ""
	for range maxPages {
		res, err := a.opts.Hooks.OfflinePage(ctx, o.tenant, &hookv1.GetOfflineMessagesRequest{
			UserId: o.key.User, DeviceId: o.key.Device, MaxMessages: pageSize, Cursor: cursor,
		})
		if err != nil || !res.Ok {
			return
		}
		if !a.deliverPage(ctx, o, res.Messages[:min(len(res.Messages), pageSize)]) {
			return
		}
		if !res.HasMore || res.NextCursor == "" || res.NextCursor == cursor {
			return
		}
		cursor = res.NextCursor
	}
}

// deliverPage sends a page and waits until it is where it can be.
func (a *Admitter) deliverPage(ctx context.Context, o opening, page []*messagev1.MessageRequest) bool {
	ctx, cancel := context.WithTimeout(ctx, pageTimeout)
	defer cancel()
	results := make(chan dispatch.Result, len(page)) // none blocks
	sent := 0
	for _, m := range page {
		if m == nil || len(m.MsgBody) > a.opts.MaxMessageBytes {
			continue
		}
		raw, err := proto.Marshal(m)
		if err != nil {
			continue
		}
		h, err := frame.ParseMessage(raw)
		if err != nil {
			continue
		}
		sent++
		a.opts.Dispatcher.SendTo(o.key, &dispatch.Message{Bytes: raw, Key: frame.Key(h)}, func(r dispatch.Result) { results <- r })
	}
	a.opts.Stats.DrainedFromHook.Add(int64(sent))
	for range sent {
		select {
		case <-results:
		case <-ctx.Done():
			return false
		}
	}
	return true
}
