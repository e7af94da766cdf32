module github.com/mics-im/mics/sdk/go

go 1.26.0

require (
	github.com/cenkalti/backoff/v5 v5.0.3
	github.com/coder/websocket v1.8.15
	github.com/google/uuid v1.6.0
	github.com/mics-im/mics/proto v0.0.0
	go.uber.org/goleak v1.3.0
	google.golang.org/protobuf v1.36.12
)

replace github.com/mics-im/mics/proto => ../../proto
