// Package drain drains gateways of a real cluster while messages run through it,
// and checks what every client saw of it: make drain-bench, and mics-load drain.
//
// Clients are programs on the Go SDK, as it is for applications: V2, or with V2
// switched off for V1 (of those a sample is a V1 client that knows nothing of the
// SDK). They form pairs that write to each other, so that one process can tell of
// every message whether it came, once, and in order.
//
// What is timed:
//
//   - gap, of a move from one connection to another: from the moment at which the
//     client sends the handshake of its second connection to the moment at which it
//     has read the ConnectAck there. Somewhere within it the session is frozen at
//     the old gateway and thawed at the new one, so this is never less than the time
//     in which nothing could be delivered. Gateways count that time themselves, from
//     within; their figure is in the receipt of the drain, and is printed beside it.
//   - latency, of a message: from the time at which it was due to be sent until the
//     application has it. It is told apart for messages whose recipient was moving
//     while they were under way.
//   - away, of a V1 client: from the end of one connection to the ConnectAck of the
//     next.
package drain
