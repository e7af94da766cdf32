package harness

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"strings"
)

// peerPID finds which of the processes holds the other end of a loopback
// connection; 0: none of them.
func peerPID(conn net.Conn, pids []int) int {
	peer, ok := conn.RemoteAddr().(*net.TCPAddr)
	own, ok2 := conn.LocalAddr().(*net.TCPAddr)
	if !ok || !ok2 {
		return 0
	}
	inode := socketInode(peer.Port, own.Port)
	if inode == "" {
		return 0
	}
	want := "socket:[" + inode + "]"
	for _, pid := range pids {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		fds, err := os.ReadDir(dir)
		if err != nil {
			continue // it has ended
		}
		for _, fd := range fds {
			if name, err := os.Readlink(dir + "/" + fd.Name()); err == nil && name == want {
				return pid
			}
		}
	}
	return 0
}

// socketInode looks a connection up by its ports, from the end at local.
func socketInode(local, remote int) string {
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return ""
	}
	mine, theirs := fmt.Sprintf(":%04X", local), fmt.Sprintf(":%04X", remote)
	for s := bufio.NewScanner(bytes.NewReader(table)); s.Scan(); {
		// sl local_address rem_address st queues tr retransmits uid timeout inode
		f := strings.Fields(s.Text())
		if len(f) > 9 && strings.HasSuffix(f[1], mine) && strings.HasSuffix(f[2], theirs) {
			return f[9]
		}
	}
	return ""
}
