// Package chart tests the Helm chart: what it renders, what it refuses, and that
// its README, alerts and settings say what the code says. It needs no cluster and
// no helm: the engine is a library. It has tests only, but for the generator of the
// README.
package chart
