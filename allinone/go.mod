module github.com/mics-im/mics/allinone

go 1.26.0

require (
	github.com/mics-im/mics/controlplane v0.0.0
	github.com/mics-im/mics/gateway v0.0.0
	github.com/mics-im/mics/internal v0.0.0
	github.com/mics-im/mics/proto v0.0.0
	github.com/mics-im/mics/router v0.0.0
	github.com/mics-im/mics/sdk/go v0.0.0
)

replace github.com/mics-im/mics/proto => ../proto

replace github.com/mics-im/mics/internal => ../internal

replace github.com/mics-im/mics/gateway => ../gateway

replace github.com/mics-im/mics/router => ../router

replace github.com/mics-im/mics/controlplane => ../controlplane

replace github.com/mics-im/mics/sdk/go => ../sdk/go
