// Package mics is the Go client of a MICS cluster: it keeps one connection to
// a gateway alive, sends messages and waits for their acknowledgements, and
// hands over what arrives.
//
// # What it promises
//
// A [Client] is made with [New], connected with [Client.Connect] and ended with
// [Client.Close]; all methods may be called from any goroutine. Between the two
// it reconnects by itself, as the gateway's close codes ask for: at once and
// elsewhere when the gateway drains, with a fresh token when the old one is
// refused, with full jitter and exponential backoff (and never before a
// Retry-After) otherwise. It stops for good, with an error that says why, when
// reconnecting would be wrong: [ErrReplaced], [ErrKicked], [ErrInvalidTenant],
// [ErrUnauthorized].
//
// Sending: [Client.Send] returns once the cluster has answered. A message
// that is unanswered when a connection breaks is sent again on the next one,
// same id, same bytes, in the original order, until its context ends; the
// cluster recognises the repeat. A context that ends leaves the outcome
// unknown: send again with the same [Message.ID] to find out.
//
// Receiving: what arrives goes through one bounded queue to
// [Options.OnDelivery] or [Client.Deliveries]. Being in that queue is what is
// acknowledged to the cluster (version 2), at the latest after 32 deliveries or
// a second. A connection that comes after another goes on with the same session
// where it can: what the queue has not got is sent again, nothing twice. Where it
// cannot (too late, or the gateway died) a new session begins, and what it
// repeats is recognised by its content among the last 1024 messages.
//
// A cluster that is about to stop a gateway asks the client to move: it opens a
// second connection, goes on there, and only then is the first one closed. The
// application sees none of it but [Stats.Migrations]; messages that were
// unanswered are sent again on the new connection, before any new one.
//
// Gateways of version 1 know neither: whatever was received before they closed
// the connection is in the queue before the close is confirmed, because they
// take the confirmation as the receipt. After a connection that broke without a
// close a delivery may come a second time ([Options.DisableV2]), with the same
// ID from the same sender.
//
// The tokens appear in no log line, error or state of this package.
package mics
