// kafka-go of segmentio, a client in Go that asks for one version of each API only. Usage: suite BOOTSTRAP
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
)

var (
	bootstrap      = "127.0.0.1:9092"
	passed, failed int
	number         int
)

func fresh(prefix string) string {
	number++
	return fmt.Sprintf("%s-%d-%d", prefix, time.Now().UnixNano(), number)
}

func check(name string, run func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	if err := run(ctx); err != nil {
		failed++
		fmt.Println("FAILED", name, err)
		return
	}
	passed++
}

func client() *kafka.Client { return &kafka.Client{Addr: kafka.TCP(bootstrap), Timeout: 10 * time.Second} }

func topic(ctx context.Context, partitions int) (string, error) {
	name := fresh("segmentio")
	made, err := client().CreateTopics(ctx, &kafka.CreateTopicsRequest{
		Topics: []kafka.TopicConfig{{Topic: name, NumPartitions: partitions, ReplicationFactor: 1}}})
	if err != nil {
		return name, err
	}
	return name, made.Errors[name]
}

func send(ctx context.Context, name string, from, to int, change func(*kafka.Writer)) error {
	w := &kafka.Writer{Addr: kafka.TCP(bootstrap), Topic: name, Balancer: &kafka.Hash{}, BatchTimeout: 5 * time.Millisecond,
		RequiredAcks: kafka.RequireAll}
	if change != nil {
		change(w)
	}
	defer w.Close()
	var messages []kafka.Message
	for i := from; i < to; i++ {
		messages = append(messages, kafka.Message{Key: []byte(fmt.Sprint("k", i)), Value: []byte(fmt.Sprint("v", i)),
			Headers: []kafka.Header{{Key: "h", Value: []byte("1")}}})
	}
	return w.WriteMessages(ctx, messages...)
}

func read(ctx context.Context, name string, offset int64, count int) ([]kafka.Message, error) {
	r := kafka.NewReader(kafka.ReaderConfig{Brokers: []string{bootstrap}, Topic: name, MaxWait: 200 * time.Millisecond})
	defer r.Close()
	if err := r.SetOffset(offset); err != nil {
		return nil, err
	}
	var messages []kafka.Message
	for len(messages) < count {
		m, err := r.ReadMessage(ctx)
		if err != nil {
			return messages, fmt.Errorf("%d of %d messages: %w", len(messages), count, err)
		}
		messages = append(messages, m)
	}
	return messages, nil
}

// consume runs so many members of a group until they have read so many messages together, and commits those.
func consume(ctx context.Context, group, name string, members, want int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var mutex sync.Mutex
	var wait sync.WaitGroup
	seen := map[string]bool{}
	for i := 0; i < members; i++ {
		wait.Add(1)
		go func() {
			defer wait.Done()
			r := kafka.NewReader(kafka.ReaderConfig{Brokers: []string{bootstrap}, GroupID: group, Topic: name,
				StartOffset: kafka.FirstOffset, MaxWait: 200 * time.Millisecond, SessionTimeout: 6 * time.Second,
				HeartbeatInterval: 500 * time.Millisecond})
			defer r.Close()
			for {
				m, err := r.FetchMessage(ctx)
				if err != nil {
					return
				}
				if err := r.CommitMessages(ctx, m); err != nil {
					fmt.Println("commit:", err)
					return
				}
				mutex.Lock()
				seen[string(m.Value)] = true
				if len(seen) >= want {
					cancel()
				}
				mutex.Unlock()
			}
		}()
	}
	wait.Wait()
	if len(seen) != want {
		return fmt.Errorf("%d of %d values", len(seen), want)
	}
	return nil
}

func main() {
	if len(os.Args) > 1 {
		bootstrap = os.Args[1]
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
	for _, codec := range []kafka.Compression{0, kafka.Gzip, kafka.Snappy, kafka.Lz4, kafka.Zstd} {
		check("compression "+codec.String(), func(ctx context.Context) error {
			name, err := topic(ctx, 1)
			if err != nil {
				return err
			}
			if err := send(ctx, name, 0, 300, func(w *kafka.Writer) { w.Compression = codec }); err != nil {
				return err
			}
			messages, err := read(ctx, name, kafka.FirstOffset, 300)
			for i, m := range messages {
				if string(m.Value) != fmt.Sprint("v", i) || string(m.Headers[0].Value) != "1" {
					return fmt.Errorf("message %d is %s", i, m.Value)
				}
			}
			return err
		})
	}
	for _, acks := range []kafka.RequiredAcks{kafka.RequireNone, kafka.RequireOne, kafka.RequireAll} {
		check("acks "+acks.String(), func(ctx context.Context) error {
			name, err := topic(ctx, 1)
			if err != nil {
				return err
			}
			if err := send(ctx, name, 0, 10, func(w *kafka.Writer) { w.RequiredAcks = acks }); err != nil {
				return err
			}
			messages, err := read(ctx, name, 7, 3)
			if err == nil && messages[0].Offset != 7 {
				return fmt.Errorf("the first is %d", messages[0].Offset)
			}
			return err
		})
	}
	check("a topic is made by writing", func(ctx context.Context) error {
		name := fresh("auto")
		for {
			err := send(ctx, name, 0, 1, func(w *kafka.Writer) { w.AllowAutoTopicCreation = true })
			if !errors.Is(err, kafka.UnknownTopicOrPartition) || ctx.Err() != nil {
				return err
			}
		}
	})
	check("a connection of the old kind", func(ctx context.Context) error {
		name, err := topic(ctx, 1)
		if err != nil {
			return err
		}
		c, err := kafka.DialLeader(ctx, "tcp", bootstrap, name, 0)
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err = c.WriteMessages(kafka.Message{Value: []byte("a")}, kafka.Message{Value: []byte("b")}); err != nil {
			return err
		}
		first, last, err := c.ReadOffsets()
		if err != nil || first != 0 || last != 2 {
			return fmt.Errorf("%d to %d, %w", first, last, err)
		}
		c.SetDeadline(time.Now().Add(10 * time.Second))
		m, err := c.ReadMessage(1 << 20)
		if err == nil && string(m.Value) != "a" {
			return fmt.Errorf("it is %s", m.Value)
		}
		return err
	})
}

func groups() {
	check("a group of three", func(ctx context.Context) error {
		name, err := topic(ctx, 4)
		if err != nil {
			return err
		}
		if err := send(ctx, name, 0, 100, nil); err != nil {
			return err
		}
		return consume(ctx, fresh("g"), name, 3, 100)
	})
	check("a group goes on from its offsets", func(ctx context.Context) error {
		name, err := topic(ctx, 1)
		if err != nil {
			return err
		}
		group := fresh("g")
		for round := 0; round < 3; round++ {
			if err := send(ctx, name, round*10, round*10+10, nil); err != nil {
				return err
			}
			if err := consume(ctx, group, name, 1, 10); err != nil {
				return err
			}
		}
		offsets, err := client().OffsetFetch(ctx, &kafka.OffsetFetchRequest{GroupID: group, Topics: map[string][]int{name: {0}}})
		if err != nil {
			return err
		}
		if offset := offsets.Topics[name][0].CommittedOffset; offset != 30 {
			return fmt.Errorf("the offset is %d", offset)
		}
		listed, err := client().ListGroups(ctx, &kafka.ListGroupsRequest{})
		if err != nil || listed.Error != nil {
			return fmt.Errorf("%w, %w", err, listed.Error)
		}
		described, err := client().DescribeGroups(ctx, &kafka.DescribeGroupsRequest{GroupIDs: []string{group}})
		if err != nil || described.Groups[0].GroupState != "Empty" {
			return fmt.Errorf("%v, %w", described, err)
		}
		deleted, err := client().DeleteGroups(ctx, &kafka.DeleteGroupsRequest{GroupIDs: []string{group}})
		if err != nil {
			return err
		}
		return deleted.Errors[group]
	})
}

func administration() {
	check("topics are grown and deleted", func(ctx context.Context) error {
		name, err := topic(ctx, 1)
		if err != nil {
			return err
		}
		grown, err := client().CreatePartitions(ctx, &kafka.CreatePartitionsRequest{
			Topics: []kafka.TopicPartitionsConfig{{Name: name, Count: 3}}})
		if err != nil || grown.Errors[name] != nil {
			return fmt.Errorf("%v, %w", grown, err)
		}
		// On a connection of its own: the client remembers metadata for a while.
		c, err := kafka.DialContext(ctx, "tcp", bootstrap)
		if err != nil {
			return err
		}
		defer c.Close()
		partitions, err := c.ReadPartitions(name)
		if err != nil || len(partitions) != 3 {
			return fmt.Errorf("%v, %w", partitions, err)
		}
		deleted, err := client().DeleteTopics(ctx, &kafka.DeleteTopicsRequest{Topics: []string{name}})
		if err != nil {
			return err
		}
		return deleted.Errors[name]
	})
	check("offsets are listed", func(ctx context.Context) error {
		name, err := topic(ctx, 1)
		if err != nil {
			return err
		}
		if err := send(ctx, name, 0, 5, nil); err != nil {
			return err
		}
		listed, err := client().ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{
			name: {kafka.FirstOffsetOf(0), kafka.LastOffsetOf(0)}}})
		if err != nil {
			return err
		}
		if of := listed.Topics[name][0]; of.FirstOffset != 0 || of.LastOffset != 5 {
			return fmt.Errorf("%v", of)
		}
		return nil
	})
	check("the controller", func(ctx context.Context) error {
		c, err := kafka.DialContext(ctx, "tcp", bootstrap)
		if err != nil {
			return err
		}
		defer c.Close()
		controller, err := c.Controller()
		if err != nil {
			return err
		}
		if address := net.JoinHostPort(controller.Host, strconv.Itoa(controller.Port)); address != bootstrap {
			return fmt.Errorf("it is %s", address)
		}
		return nil
	})
}
