package testkit

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// kafkaVersion is the newest that Java 17 runs and this was tried with.
const kafkaVersion = "4.1.1"

// kafka is where Kafka is installed.
type kafka struct {
	java string
	libs string // class path
	// store is a formatted, empty store of a broker.
	store string
}

// kafkaPOM makes Maven fetch Kafka and what it needs.
const kafkaPOM = `<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>mics.tests</groupId><artifactId>kafka</artifactId><version>1</version>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>%s</version></dependency>
  </dependencies>
</project>
`

// findKafka returns the installation in the user's cache, which it makes if it is
// not there.
func findKafka(t testing.TB) kafka {
	t.Helper()
	java, err := exec.LookPath("java")
	if err != nil {
		skipKafka(t, "java is not installed (Debian package default-jre-headless)")
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	home := filepath.Join(cache, "mics-kafka-"+kafkaVersion)
	k := kafka{java: java, libs: filepath.Join(home, "lib", "*"), store: filepath.Join(home, "store")}
	if _, err := os.Stat(k.store); err == nil {
		return k
	}
	mvn, err := exec.LookPath("mvn")
	if err != nil {
		skipKafka(t, "mvn is not installed (Debian package maven)")
	}
	t.Logf("fetching Kafka %s into %s", kafkaVersion, home)
	if err := installKafka(java, mvn, home); err != nil {
		t.Fatal(err)
	}
	return k
}

func skipKafka(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("MICS_REQUIRE_KAFKA") != "" {
		t.Fatal(why)
	}
	t.Skip("SKIPPED, NOTHING WAS TRIED WITH A REAL KAFKA: " + why)
}

// installKafka makes an installation beside home and moves it there in one step:
// other test processes may do the same.
func installKafka(java, mvn, home string) error {
	if err := os.MkdirAll(filepath.Dir(home), 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(home), filepath.Base(home)+"-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	pom, lib, store, config := filepath.Join(tmp, "pom.xml"), filepath.Join(tmp, "lib"), filepath.Join(tmp, "store"), filepath.Join(tmp, "format.properties")
	if err := os.WriteFile(pom, fmt.Appendf(nil, kafkaPOM, kafkaVersion), 0o600); err != nil {
		return err
	}
	if out, err := exec.Command(mvn, "-q", "-B", "-f", pom, "dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory="+lib).CombinedOutput(); err != nil {
		return fmt.Errorf("fetch Kafka: %w\n%s", err, out)
	}
	p := kafkaProperties()
	p["listeners"], p["controller.quorum.voters"], p["log.dirs"] = "PLAIN://127.0.0.1:1,CONTROLLER://127.0.0.1:2", "1@127.0.0.1:2", store
	p["listener.security.protocol.map"] = "PLAIN:PLAINTEXT,CONTROLLER:PLAINTEXT"
	if err := os.WriteFile(config, properties(p), 0o600); err != nil {
		return err
	}
	if out, err := exec.Command(java, "-cp", filepath.Join(lib, "*"), "kafka.tools.StorageTool", "format", "-t", kafkaCluster, "-c", config).CombinedOutput(); err != nil {
		return fmt.Errorf("format Kafka's store: %w\n%s", err, out)
	}
	if err := os.Rename(tmp, home); err != nil {
		if _, there := os.Stat(filepath.Join(home, "store")); there == nil {
			return nil // another process was faster
		}
		return err
	}
	return nil
}
