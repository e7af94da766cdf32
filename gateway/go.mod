module github.com/mics-im/mics/gateway

go 1.26.0

require (
	github.com/mics-im/mics/internal v0.0.0
	github.com/mics-im/mics/proto v0.0.0
)

require (
	connectrpc.com/connect v1.21.1 // indirect
	github.com/coder/websocket v1.8.15 // indirect
	golang.org/x/time v0.16.0 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
)

replace github.com/mics-im/mics/proto => ../proto

replace github.com/mics-im/mics/internal => ../internal
