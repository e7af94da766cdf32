// Package hook is the tenant's side of a MICS cluster: an [http.Handler] that
// answers the cluster's HTTP hooks, and a reader for the events that it
// publishes on Kafka.
//
// # Hooks
//
// The cluster stores no business data. It asks: who is this (auth), may this be
// said (check-message), who is in this group (get-group-members), and what was
// kept for this device (get-offline-messages). Give [New] a function for each
// question that you answer and mount the [Handler] under the base URL that the
// cluster's operators know of you:
//
//	h, err := hook.New(hook.Options{Secret: secret, Auth: auth, GroupMembers: members})
//	...
//	http.Handle("/mics/", h) // POST /mics/auth, /mics/get-group-members
//
// The package example is a whole server. What your functions should know:
//
//   - They are called at the same time from many goroutines: up to 32 for each
//     hook unless the configuration that Auth returns says otherwise.
//   - The cluster waits 150 ms for an answer, network included. After that the
//     context ends, as far as the way to you lets it be known, and nobody reads
//     the answer. Five failures in a row, and the hook is not called for 5 s.
//   - An error or a panic is answered with status 500 and logged; the caller does
//     not see its text. The cluster then refuses the connection (auth), lets the
//     message pass as unmoderated (check-message), fails it (get-group-members)
//     or goes on without (get-offline-messages). To refuse is an answer, not an
//     error: [Refuse], [Deny].
//   - A hook without a function is answered with 501. The cluster never asks to
//     check messages if CheckMessage is nil: the handler says so in the
//     configuration that accompanies an accepted login, unless Auth did itself.
//   - An answer may be 8 MiB long.
//
// # Signatures
//
// Every request carries a signature made with a secret that you and the cluster
// share, and the time of its making. The handler refuses what is not signed
// with one of your secrets and what is older or newer than [Options.MaxAge]. The
// signature covers the request as it was received, fields of later versions of
// the contract included. It covers neither the URL nor your answer: use TLS
// wherever the network between is not your own.
//
// The secret of auth is agreed upon with the operators. Later hooks and events
// are signed with the tenant_secret of the configuration that Auth returned, or
// with the same one if it was empty. To change a secret without a gap let
// [Options.Secrets] return both for a while.
//
// # Events
//
// [ParseEvent] verifies and decodes the value of a record of your topic
// im-mics-{TenantId}-event. [Sequence] notices when events are missing or come
// twice.
package hook
