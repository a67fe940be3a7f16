// franz-go, a client in Go that speaks the newest versions of everything. Usage: suite BOOTSTRAP
package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
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

func client(options ...kgo.Opt) *kgo.Client {
	c, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(bootstrap)}, options...)...)
	if err != nil {
		panic(err)
	}
	return c
}

func topic(ctx context.Context, partitions int32) (string, error) {
	c := client()
	defer c.Close()
	name := fresh("franz")
	_, err := kadm.NewClient(c).CreateTopic(ctx, partitions, 1, nil, name)
	return name, err
}

func send(ctx context.Context, name string, from, to int, options ...kgo.Opt) error {
	c := client(append(options, kgo.DefaultProduceTopic(name))...)
	defer c.Close()
	var records []*kgo.Record
	for i := from; i < to; i++ {
		records = append(records, &kgo.Record{Key: []byte{byte(i)}, Value: []byte(fmt.Sprint("v", i))})
	}
	return c.ProduceSync(ctx, records...).FirstErr()
}

func take(ctx context.Context, c *kgo.Client, count int) ([]*kgo.Record, error) {
	var records []*kgo.Record
	for len(records) < count {
		fetches := c.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return nil, fmt.Errorf("%d of %d: %w", len(records), count, err)
		}
		records = append(records, fetches.Records()...)
	}
	return records, nil
}

func main() {
	if len(os.Args) > 1 {
		bootstrap = os.Args[1]
	}
	codecs := map[string]kgo.CompressionCodec{"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(),
		"snappy": kgo.SnappyCompression(), "lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression()}
	for name, codec := range codecs {
		check("compression "+name, func(ctx context.Context) error {
			t, err := topic(ctx, 1)
			if err != nil {
				return err
			}
			if err := send(ctx, t, 0, 500, kgo.ProducerBatchCompression(codec)); err != nil {
				return err
			}
			c := client(kgo.ConsumeTopics(t), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
			defer c.Close()
			records, err := take(ctx, c, 500)
			for i, r := range records {
				if string(r.Value) != fmt.Sprint("v", i) {
					return fmt.Errorf("record %d is %s", i, r.Value)
				}
			}
			return err
		})
	}
	check("from the middle of a batch", func(ctx context.Context) error {
		t, err := topic(ctx, 1)
		if err != nil {
			return err
		}
		if err := send(ctx, t, 0, 100); err != nil {
			return err
		}
		at := map[string]map[int32]kgo.Offset{t: {0: kgo.NewOffset().At(63)}}
		c := client(kgo.ConsumePartitions(at))
		defer c.Close()
		records, err := take(ctx, c, 37)
		if err == nil && records[0].Offset != 63 {
			return fmt.Errorf("offset %d", records[0].Offset)
		}
		return err
	})
	for name, balancer := range map[string]kgo.GroupBalancer{"range": kgo.RangeBalancer(), "cooperative": kgo.CooperativeStickyBalancer()} {
		check("group, "+name, func(ctx context.Context) error {
			t, err := topic(ctx, 4)
			if err != nil {
				return err
			}
			group := fresh("g")
			member := func() *kgo.Client {
				return client(kgo.ConsumerGroup(group), kgo.ConsumeTopics(t), kgo.Balancers(balancer),
					kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit(),
					kgo.SessionTimeout(6*time.Second), kgo.HeartbeatInterval(300*time.Millisecond))
			}
			a, b := member(), member()
			defer a.Close()
			defer b.Close()
			if err := send(ctx, t, 0, 200); err != nil {
				return err
			}
			seen := map[string]bool{}
			for len(seen) < 200 {
				for _, c := range []*kgo.Client{a, b} {
					short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
					fetches := c.PollFetches(short)
					cancel()
					for _, r := range fetches.Records() {
						seen[string(r.Value)] = true
					}
					if fetches.NumRecords() > 0 {
						// A rebalance may refuse it; what was read will come again.
						_ = c.CommitUncommittedOffsets(ctx)
					}
				}
				if ctx.Err() != nil {
					return fmt.Errorf("%d of 200 seen", len(seen))
				}
			}
			adm := kadm.NewClient(a)
			described, err := adm.DescribeGroups(ctx, group)
			if err != nil {
				return err
			}
			if n := len(described[group].Members); n != 2 {
				return fmt.Errorf("%d members, state %s", n, described[group].State)
			}
			_, err = adm.Lag(ctx, group)
			return err
		})
	}
	check("transactions", transactions)
	check("consume, transform, produce", copyExactly)
	check("administration", func(ctx context.Context) error {
		t, err := topic(ctx, 2)
		if err != nil {
			return err
		}
		c := client()
		defer c.Close()
		adm := kadm.NewClient(c)
		value := "1000"
		if _, err := adm.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Name: "retention.ms", Value: &value}}, t); err != nil {
			return err
		}
		if _, err := adm.UpdatePartitions(ctx, 3, t); err != nil {
			return err
		}
		ends, err := adm.ListEndOffsets(ctx, t)
		if err != nil {
			return err
		}
		if n := len(ends[t]); n != 3 {
			return fmt.Errorf("%d partitions", n)
		}
		_, err = adm.DeleteTopics(ctx, t)
		return err
	})
	fmt.Printf("%d passed, %d failed\n", passed, failed)
	if failed > 0 {
		os.Exit(1)
	}
}

// committed reads what is committed in a topic of one partition, and nothing may come behind it.
func committed(ctx context.Context, topic string, count int) ([]string, error) {
	c := client(kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	defer c.Close()
	records, err := take(ctx, c, count)
	if err != nil {
		return nil, err
	}
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	records = append(records, c.PollFetches(short).Records()...)
	var values []string
	for _, r := range records {
		values = append(values, string(r.Value))
	}
	return values, nil
}

func transactions(ctx context.Context) error {
	t, err := topic(ctx, 1)
	if err != nil {
		return err
	}
	id := fresh("tx")
	c := client(kgo.TransactionalID(id), kgo.DefaultProduceTopic(t))
	defer c.Close()
	var expected []string
	for i := range 12 {
		if err := c.BeginTransaction(); err != nil {
			return err
		}
		for j := range 3 {
			value := fmt.Sprint(i, " ", j)
			if err := c.ProduceSync(ctx, kgo.StringRecord(value)).FirstErr(); err != nil {
				return err
			}
			if i%3 > 0 {
				expected = append(expected, value)
			}
		}
		if err := c.EndTransaction(ctx, kgo.TransactionEndTry(i%3 > 0)); err != nil {
			return err
		}
	}
	values, err := committed(ctx, t, len(expected))
	if err == nil && !slices.Equal(values, expected) {
		return fmt.Errorf("%v", values)
	}
	if err != nil {
		return err
	}
	// Another one with its name: the first is fenced.
	if err := c.BeginTransaction(); err != nil {
		return err
	}
	if err := c.ProduceSync(ctx, kgo.StringRecord("zombie")).FirstErr(); err != nil {
		return err
	}
	next := client(kgo.TransactionalID(id))
	defer next.Close()
	if _, _, err := next.ProducerID(ctx); err != nil {
		return err
	}
	if err := c.EndTransaction(ctx, kgo.TryCommit); err == nil {
		return fmt.Errorf("a zombie has committed")
	}
	values, err = committed(ctx, t, len(expected))
	if err == nil && len(values) != len(expected) {
		return fmt.Errorf("%v", values[len(expected):])
	}
	return err
}

// copyExactly copies a topic in transactions, with members that come and go and every third transaction aborted.
func copyExactly(ctx context.Context) error {
	from, err := topic(ctx, 2)
	if err != nil {
		return err
	}
	to, err := topic(ctx, 1)
	if err != nil {
		return err
	}
	const count = 300
	if err := send(ctx, from, 0, count); err != nil {
		return err
	}
	group := fresh("g")
	copied := 0
	for round := 0; copied < count; round++ {
		s, err := kgo.NewGroupTransactSession(kgo.SeedBrokers(bootstrap), kgo.TransactionalID(group+"-tx"),
			kgo.ConsumerGroup(group), kgo.ConsumeTopics(from), kgo.DefaultProduceTopic(to),
			kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.RequireStableFetchOffsets(),
			kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.SessionTimeout(6*time.Second))
		if err != nil {
			return err
		}
		for turn := 0; turn < 4 && copied < count; turn++ {
			fetches := s.PollRecords(ctx, 20)
			if err := fetches.Err(); err != nil {
				return err
			}
			if err := s.Begin(); err != nil {
				return err
			}
			for _, r := range fetches.Records() {
				s.Produce(ctx, kgo.StringRecord(string(r.Value)), nil)
			}
			done, err := s.End(ctx, kgo.TransactionEndTry((turn+round)%3 > 0))
			if err != nil {
				return err
			}
			if done {
				copied += fetches.NumRecords()
			}
		}
		s.Close()
	}
	values, err := committed(ctx, to, count)
	slices.Sort(values)
	if err == nil && (len(values) != count || len(slices.Compact(values)) != count) {
		return fmt.Errorf("%d values", len(values))
	}
	return err
}
