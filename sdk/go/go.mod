module github.com/mics-im/mics/sdk/go

go 1.26.0

require github.com/mics-im/mics/proto v0.0.0

require (
	github.com/cenkalti/backoff/v5 v5.0.3 // indirect
	github.com/coder/websocket v1.8.15 // indirect
	github.com/google/uuid v1.6.0 // indirect
	go.uber.org/goleak v1.3.0 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
)

replace github.com/mics-im/mics/proto => ../../proto
