// sarama, the client in Go that came first. Usage: suite BOOTSTRAP
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/IBM/sarama"
)

var (
	bootstrap      = "127.0.0.1:9092"
	admin          sarama.ClusterAdmin
	passed, failed int
	number         int
)

func fresh(prefix string) string {
	number++
	return fmt.Sprintf("%s-%d-%d", prefix, time.Now().UnixNano(), number)
}

func check(name string, run func() error) {
	if err := run(); err != nil {
		failed++
		fmt.Println("FAILED", name, err)
		return
	}
	passed++
}

func config(change func(*sarama.Config)) *sarama.Config {
	c := sarama.NewConfig()
	c.Version = sarama.MaxVersion
	c.Producer.Return.Successes = true
	c.Consumer.Offsets.Initial = sarama.OffsetOldest
	c.Consumer.Group.Heartbeat.Interval = 500 * time.Millisecond
	c.Consumer.Group.Session.Timeout = 6 * time.Second
	if change != nil {
		change(c)
	}
	return c
}

func topic(partitions int32) (string, error) {
	name := fresh("sarama")
	return name, admin.CreateTopic(name, &sarama.TopicDetail{NumPartitions: partitions, ReplicationFactor: 1}, false)
}

func send(name string, from, to int, change func(*sarama.Config)) error {
	p, err := sarama.NewSyncProducer([]string{bootstrap}, config(change))
	if err != nil {
		return err
	}
	defer p.Close()
	var messages []*sarama.ProducerMessage
	for i := from; i < to; i++ {
		messages = append(messages, &sarama.ProducerMessage{
			Topic: name, Key: sarama.StringEncoder(fmt.Sprint("k", i)), Value: sarama.StringEncoder(fmt.Sprint("v", i)),
			Headers: []sarama.RecordHeader{{Key: []byte("h"), Value: []byte("1")}},
		})
	}
	return p.SendMessages(messages)
}

// read takes messages of partition 0 in order, from an offset.
func read(name string, from int64, count int, change func(*sarama.Config)) ([]*sarama.ConsumerMessage, error) {
	c, err := sarama.NewConsumer([]string{bootstrap}, config(change))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	p, err := c.ConsumePartition(name, 0, from)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	var messages []*sarama.ConsumerMessage
	for len(messages) < count {
		select {
		case m := <-p.Messages():
			messages = append(messages, m)
		case <-time.After(20 * time.Second):
			return messages, fmt.Errorf("%d of %d messages", len(messages), count)
		}
	}
	return messages, nil
}

// member counts what a group's consumer gets, and marks it.
type member struct {
	mutex *sync.Mutex
	seen  map[string]int
	done  func()
	want  int
}

func (m member) Setup(sarama.ConsumerGroupSession) error   { return nil }
func (m member) Cleanup(sarama.ConsumerGroupSession) error { return nil }
func (m member) ConsumeClaim(s sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	for {
		select {
		case message, open := <-claim.Messages():
			if !open {
				return nil
			}
			m.mutex.Lock()
			m.seen[string(message.Value)]++
			all := len(m.seen) >= m.want
			m.mutex.Unlock()
			s.MarkMessage(message, "")
			if all {
				s.Commit()
				m.done()
			}
		case <-s.Context().Done():
			return nil
		}
	}
}

// consume runs so many members until they have seen so many values together.
func consume(group, name string, members, want int, change func(*sarama.Config)) error {
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	m := member{&sync.Mutex{}, map[string]int{}, cancel, want}
	var wait sync.WaitGroup
	for i := 0; i < members; i++ {
		g, err := sarama.NewConsumerGroup([]string{bootstrap}, group, config(change))
		if err != nil {
			return err
		}
		wait.Add(1)
		go func() {
			defer wait.Done()
			defer g.Close()
			for ctx.Err() == nil {
				if err := g.Consume(ctx, []string{name}, m); err != nil && !errors.Is(err, context.Canceled) {
					fmt.Println(err)
				}
			}
		}()
	}
	wait.Wait()
	if len(m.seen) != want {
		return fmt.Errorf("%d of %d values", len(m.seen), want)
	}
	return nil
}

func main() {
	if len(os.Args) > 1 {
		bootstrap = os.Args[1]
	}
	var err error
	if admin, err = sarama.NewClusterAdmin([]string{bootstrap}, config(nil)); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	records()
	groups()
	administration()
	fmt.Printf("%d passed, %d failed\n", passed, failed)
	if failed > 0 {
		os.Exit(1)
	}
}

func records() {
	codecs := []sarama.CompressionCodec{sarama.CompressionNone, sarama.CompressionGZIP, sarama.CompressionSnappy,
		sarama.CompressionLZ4, sarama.CompressionZSTD}
	for _, codec := range codecs {
		check("compression "+codec.String(), func() error {
			name, err := topic(1)
			if err != nil {
				return err
			}
			if err := send(name, 0, 500, func(c *sarama.Config) { c.Producer.Compression = codec }); err != nil {
				return err
			}
			messages, err := read(name, sarama.OffsetOldest, 500, nil)
			for i, m := range messages {
				if string(m.Value) != fmt.Sprint("v", i) || string(m.Headers[0].Value) != "1" {
					return fmt.Errorf("message %d is %s", i, m.Value)
				}
			}
			return err
		})
	}
	versions := []sarama.KafkaVersion{sarama.V0_11_0_0, sarama.V1_0_0_0, sarama.V2_1_0_0, sarama.V2_8_0_0, sarama.V3_6_0_0}
	for _, version := range versions {
		check("as of "+version.String(), func() error {
			of := func(c *sarama.Config) { c.Version = version }
			name, err := topic(1)
			if err != nil {
				return err
			}
			if err := send(name, 0, 10, of); err != nil {
				return err
			}
			if _, err = read(name, 4, 6, of); err != nil {
				return err
			}
			return consume(fresh("g"), name, 1, 10, of)
		})
	}
	check("idempotent producer", func() error {
		name, err := topic(1)
		if err != nil {
			return err
		}
		idempotent := func(c *sarama.Config) {
			c.Producer.Idempotent, c.Producer.RequiredAcks, c.Net.MaxOpenRequests = true, sarama.WaitForAll, 1
		}
		if err := send(name, 0, 1000, idempotent); err != nil {
			return err
		}
		messages, err := read(name, 999, 1, nil)
		if err == nil && string(messages[0].Value) != "v999" {
			return fmt.Errorf("the last is %s", messages[0].Value)
		}
		return err
	})
	check("an offset that is out of range", func() error {
		name, err := topic(1)
		if err != nil {
			return err
		}
		if _, err = read(name, 100, 1, nil); !errors.Is(err, sarama.ErrOffsetOutOfRange) {
			return fmt.Errorf("no error, but %v", err)
		}
		return nil
	})
}

func groups() {
	strategies := []sarama.BalanceStrategy{sarama.NewBalanceStrategyRange(), sarama.NewBalanceStrategyRoundRobin(),
		sarama.NewBalanceStrategySticky()}
	for _, strategy := range strategies {
		check("a group of three, "+strategy.Name(), func() error {
			name, err := topic(4)
			if err != nil {
				return err
			}
			if err := send(name, 0, 300, nil); err != nil {
				return err
			}
			return consume(fresh("g"), name, 3, 300, func(c *sarama.Config) {
				c.Consumer.Group.Rebalance.GroupStrategies = []sarama.BalanceStrategy{strategy}
			})
		})
	}
	check("a group goes on from its offsets", func() error {
		name, err := topic(1)
		if err != nil {
			return err
		}
		group := fresh("g")
		for round := 0; round < 3; round++ {
			if err := send(name, round*10, round*10+10, nil); err != nil {
				return err
			}
			if err := consume(group, name, 1, 10, nil); err != nil {
				return err
			}
		}
		offsets, err := admin.ListConsumerGroupOffsets(group, map[string][]int32{name: {0}})
		if err != nil {
			return err
		}
		if offset := offsets.GetBlock(name, 0).Offset; offset != 30 {
			return fmt.Errorf("the offset is %d", offset)
		}
		return admin.DeleteConsumerGroup(group)
	})
	check("a static member", func() error {
		name, err := topic(1)
		if err != nil {
			return err
		}
		if err := send(name, 0, 10, nil); err != nil {
			return err
		}
		return consume(fresh("g"), name, 1, 10, func(c *sarama.Config) { c.Consumer.Group.InstanceId = "one" })
	})
	check("groups are listed and described", func() error {
		name, err := topic(1)
		if err != nil {
			return err
		}
		group := fresh("g")
		if err := send(name, 0, 1, nil); err != nil {
			return err
		}
		if err := consume(group, name, 1, 1, nil); err != nil {
			return err
		}
		listed, err := admin.ListConsumerGroups()
		if err != nil {
			return err
		}
		if listed[group] != "consumer" {
			return fmt.Errorf("it is not listed: %v", listed[group])
		}
		described, err := admin.DescribeConsumerGroups([]string{group})
		if err == nil && described[0].State != "Empty" {
			return fmt.Errorf("its state is %s", described[0].State)
		}
		return err
	})
}

func administration() {
	check("topics are made, described, grown, deleted", func() error {
		name, err := topic(1)
		if err != nil {
			return err
		}
		if err := admin.CreatePartitions(name, 3, nil, false); err != nil {
			return err
		}
		described, err := admin.DescribeTopics([]string{name})
		if err != nil {
			return err
		}
		if len(described[0].Partitions) != 3 {
			return fmt.Errorf("%d partitions", len(described[0].Partitions))
		}
		again := admin.CreateTopic(name, &sarama.TopicDetail{NumPartitions: 1, ReplicationFactor: 1}, false)
		if !errors.Is(again, sarama.ErrTopicAlreadyExists) {
			return fmt.Errorf("made again: %v", again)
		}
		return admin.DeleteTopic(name)
	})
	check("configs", func() error {
		name, err := topic(1)
		if err != nil {
			return err
		}
		value := "5000"
		entries := map[string]sarama.IncrementalAlterConfigsEntry{
			"retention.ms": {Operation: sarama.IncrementalAlterConfigsOperationSet, Value: &value}}
		if err := admin.IncrementalAlterConfig(sarama.TopicResource, name, entries, false); err != nil {
			return err
		}
		config, err := admin.DescribeConfig(sarama.ConfigResource{
			Type: sarama.TopicResource, Name: name, ConfigNames: []string{"retention.ms"}})
		if err == nil && (len(config) != 1 || config[0].Value != value) {
			return fmt.Errorf("it is %v", config)
		}
		return err
	})
	check("records are deleted", func() error {
		name, err := topic(1)
		if err != nil {
			return err
		}
		if err := send(name, 0, 10, nil); err != nil {
			return err
		}
		if err := admin.DeleteRecords(name, map[int32]int64{0: 4}); err != nil {
			return err
		}
		messages, err := read(name, sarama.OffsetOldest, 6, nil)
		if err == nil && messages[0].Offset != 4 {
			return fmt.Errorf("the first is %d", messages[0].Offset)
		}
		return err
	})
}
