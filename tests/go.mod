module github.com/mics-im/mics/tests

go 1.26.0

replace github.com/mics-im/mics/proto => ../proto

replace github.com/mics-im/mics/internal => ../internal

replace github.com/mics-im/mics/gateway => ../gateway

replace github.com/mics-im/mics/router => ../router

replace github.com/mics-im/mics/controlplane => ../controlplane

replace github.com/mics-im/mics/allinone => ../allinone

replace github.com/mics-im/mics/sdk/go => ../sdk/go

replace github.com/mics-im/mics/ctl => ../ctl
