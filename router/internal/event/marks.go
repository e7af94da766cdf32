package event

import (
	"errors"
	"fmt"
	"time"

	"github.com/IBM/sarama"
)

// redriveGroup is the group under whose name the cluster keeps how far each
// tenant's dead letters have been redriven.
const redriveGroup = "mics-redrive"

// A group's coordinator may just be loading what it knows.
const (
	markTries = 20
	markPause = 250 * time.Millisecond
)

// redriven returns the offsets up to which a topic's partitions have been
// redriven; those of which nothing is known are not in it.
func (c *cluster) redriven(topic string, partitions int) (map[int32]int64, error) {
	out := map[int32]int64{}
	ids := make([]int32, partitions)
	for id := range ids {
		ids[id] = int32(id)
	}
	err := c.coordinated(func(b *sarama.Broker) error {
		res, err := b.FetchOffset(sarama.NewOffsetFetchRequest(c.conf.Version, redriveGroup, map[string][]int32{topic: ids}))
		if err != nil {
			return err
		}
		if res.Err == sarama.ErrGroupIDNotFound {
			return nil // nothing was ever redriven
		}
		for _, id := range ids {
			switch block := res.GetBlock(topic, id); {
			case block == nil || block.Err == sarama.ErrGroupIDNotFound:
			case block.Err != sarama.ErrNoError:
				return block.Err
			case block.Offset >= 0:
				out[id] = block.Offset
			}
		}
		return faultOf(res.Err)
	})
	if err != nil {
		return nil, fmt.Errorf("read what has been redriven: %w", err)
	}
	return out, nil
}

// remember keeps the offsets up to which a topic's partitions have been
// redriven.
func (c *cluster) remember(topic string, done map[int32]int64) error {
	if len(done) == 0 {
		return nil
	}
	err := c.coordinated(func(b *sarama.Broker) error {
		req := sarama.NewOffsetCommitRequest(c.conf, redriveGroup)
		req.ConsumerGroupGeneration = sarama.GroupGenerationUndefined
		for id, offset := range done {
			req.AddBlock(topic, id, offset, 0, "")
		}
		res, err := b.CommitOffset(req)
		if err != nil {
			return err
		}
		for _, parts := range res.Errors {
			for _, e := range parts {
				if e != sarama.ErrNoError {
					return e
				}
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("remember what has been redriven: %w", err)
	}
	return nil
}

// coordinated asks the group's coordinator, again while it is coming up: the
// first time the cluster makes the topic in which it keeps groups.
func (c *cluster) coordinated(ask func(*sarama.Broker) error) error {
	for try := 1; ; try++ {
		err := c.askCoordinator(ask)
		var k sarama.KError
		passes := errors.As(err, &k) && (k == sarama.ErrOffsetsLoadInProgress || k == sarama.ErrConsumerCoordinatorNotAvailable || k == sarama.ErrNotCoordinatorForConsumer)
		if err == nil || !passes || try == markTries {
			return err
		}
		select {
		case <-c.ctx.Done():
			return errors.Join(err, errClosed)
		case <-time.After(markPause):
		}
	}
}

func (c *cluster) askCoordinator(ask func(*sarama.Broker) error) error {
	var addr string
	err := c.any(func(b *sarama.Broker) error {
		res, err := b.FindCoordinator(&sarama.FindCoordinatorRequest{Version: 1, CoordinatorKey: redriveGroup, CoordinatorType: sarama.CoordinatorGroup})
		switch {
		case err != nil:
			return err
		case res.Err != sarama.ErrNoError:
			return res.Err
		}
		addr = res.Coordinator.Addr()
		return nil
	})
	if err != nil {
		return err
	}
	return c.with(addr, ask)
}
