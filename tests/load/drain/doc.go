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
//   - gap, of a move from one connection to another: the time in which nothing could
//     be delivered to the application, from the moment at which the old gateway froze
//     the session (its debug event session_frozen) to the moment at which the client
//     had read the ConnectAck on its second connection. One machine, one clock. Of
//     several freezes since its ConnectAck before, the first counts. Gateways count a
//     gap themselves, from when the home router asks for the Handover to the written
//     ConnectAck, without the ways from the home and to the client; their figure is in
//     the receipt of the drain, and is printed beside it.
//   - from the new route: from the moment at which the home router was about to write
//     the new route (its debug event session_bound). What is sent to the client between
//     then and the freeze waits for so long at most.
//   - whole move: from the moment at which the client sent the handshake of its second
//     connection. Until the freeze somewhere within it the first one delivers.
//   - latency, of a message: from the time at which it was due to be sent until the
//     application has it. It is told apart for messages whose recipient was moving
//     while they were under way.
//   - away, of a V1 client: from the end of one connection to the ConnectAck of the
//     next.
package drain
