package harness

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Metrics are the samples of a process by name with labels, as in
// `mics_ws_frames_rejected_total{reason="malformed"}`.
type Metrics map[string]float64

// Sum adds up all samples of a metric, whatever their labels; 0 without any.
func (m Metrics) Sum(name string) float64 {
	var sum float64
	for k, v := range m {
		if n, _, _ := strings.Cut(k, "{"); n == name {
			sum += v
		}
	}
	return sum
}

// With adds up the samples of a metric that have the label.
func (m Metrics) With(name, label, value string) float64 {
	var sum float64
	for k, v := range m {
		if strings.HasPrefix(k, name+"{") && strings.Contains(k, label+`="`+value+`"`) {
			sum += v
		}
	}
	return sum
}

func readMetrics(url string) (Metrics, error) {
	body, status, err := get(url)
	if err != nil {
		return nil, err
	}
	if status != http.StatusOK {
		return nil, fmt.Errorf("status %d", status)
	}
	return parseMetrics(body)
}

// parseMetrics reads the Prometheus text format, without time stamps.
func parseMetrics(text string) (Metrics, error) {
	m := Metrics{}
	s := bufio.NewScanner(strings.NewReader(text))
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		line := s.Text()
		if line == "" || line[0] == '#' {
			continue
		}
		i := strings.LastIndexByte(line, ' ')
		if i < 0 {
			return nil, fmt.Errorf("no sample: %q", line)
		}
		v, err := strconv.ParseFloat(line[i+1:], 64)
		if err != nil {
			return nil, fmt.Errorf("no sample: %q", line)
		}
		m[line[:i]] = v
	}
	return m, s.Err()
}

// get fetches a URL over a connection of its own.
func get(url string) (body string, status int, err error) {
	c := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := c.Get(url)
	if err != nil {
		return "", 0, err
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	return string(b), res.StatusCode, err
}
