// Package chaos has users talk over a cluster of real processes while those are
// killed, paused, restarted and cut off from each other, and checks that nobody
// can tell (package history says what that means). A run is short and made from a
// seed; many runs make a table.
//
//	go test ./tests/chaos -run TestChaos -chaos.duration=3m -chaos.seed=1
//
// The plan of faults (package nemesis) is the same whenever the seed is; what
// the scheduler makes of it is not.
package chaos
