import java.time.Duration;
import java.util.*;
import java.util.concurrent.*;
import java.util.function.BooleanSupplier;
import org.apache.kafka.clients.admin.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.*;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.errors.*;
import org.apache.kafka.common.header.internals.RecordHeader;
import org.apache.kafka.common.serialization.*;

/** kafka-clients, the Java client. Usage: java -cp JARS Suite.java BOOTSTRAP */
public class Suite {
    interface Check { void run() throws Exception; }

    static String bootstrap;
    static Admin admin;
    static int passed, failed;

    static void check(String name, Check check) {
        try {
            check.run();
            passed++;
        } catch (Throwable e) {
            failed++;
            System.out.println("FAILED " + name);
            e.printStackTrace(System.out);
        }
    }

    static void that(boolean holds, Object... seen) {
        if (!holds) throw new AssertionError(Arrays.toString(seen));
    }

    static <E extends Throwable> void fails(Class<E> with, Check check) throws Exception {
        try {
            check.run();
        } catch (Exception e) {
            Throwable cause = e instanceof ExecutionException ? e.getCause() : e;
            that(with.isInstance(cause), cause);
            return;
        }
        that(false, "no " + with);
    }

    static String fresh(String prefix) { return prefix + "-" + UUID.randomUUID().toString().substring(0, 8); }

    static String topic(int partitions, Map<String, String> configs) throws Exception {
        String name = fresh("java");
        admin.createTopics(List.of(new NewTopic(name, partitions, (short) 1).configs(configs))).all().get();
        return name;
    }

    static KafkaProducer<String, String> producer(Object... more) {
        return new KafkaProducer<>(config(more), new StringSerializer(), new StringSerializer());
    }

    static KafkaConsumer<String, String> consumer(Object... more) {
        Map<String, Object> config = config("group.id", fresh("g"), "auto.offset.reset", "earliest",
            "enable.auto.commit", "false", "session.timeout.ms", "6000", "heartbeat.interval.ms", "500");
        config.putAll(config(more));
        return new KafkaConsumer<>(config, new StringDeserializer(), new StringDeserializer());
    }

    static Map<String, Object> config(Object... pairs) {
        Map<String, Object> config = new HashMap<>(Map.of("bootstrap.servers", bootstrap));
        for (int i = 0; i < pairs.length; i += 2) config.put((String) pairs[i], pairs[i + 1]);
        return config;
    }

    static void send(String topic, int from, int to, Object... more) throws Exception {
        try (var producer = producer(more)) {
            List<Future<RecordMetadata>> sent = new ArrayList<>();
            for (int i = from; i < to; i++) sent.add(producer.send(new ProducerRecord<>(topic, "k" + i, "v" + i)));
            for (var future : sent) future.get(20, TimeUnit.SECONDS);
        }
    }

    static List<ConsumerRecord<String, String>> take(KafkaConsumer<String, String> consumer, int count) {
        List<ConsumerRecord<String, String>> records = new ArrayList<>();
        long end = System.currentTimeMillis() + 20_000;
        while (records.size() < count && System.currentTimeMillis() < end) {
            consumer.poll(Duration.ofMillis(100)).forEach(records::add);
        }
        that(records.size() == count, records.size(), count);
        return records;
    }

    static void until(BooleanSupplier holds, Runnable meanwhile) {
        long end = System.currentTimeMillis() + 25_000;
        while (!holds.getAsBoolean()) {
            that(System.currentTimeMillis() < end, "it took too long");
            meanwhile.run();
        }
    }

    public static void main(String[] args) throws Exception {
        bootstrap = args.length > 0 ? args[0] : "127.0.0.1:9092";
        admin = Admin.create(config());
        records();
        offsets();
        groups();
        transactions();
        administration();
        admin.close();
        System.out.println(passed + " passed, " + failed + " failed");
        System.exit(failed == 0 ? 0 : 1);
    }

    static void records() {
        for (String codec : List.of("none", "gzip", "snappy", "lz4", "zstd")) {
            check("compression " + codec, () -> {
                String topic = topic(1, Map.of());
                send(topic, 0, 1000, "compression.type", codec, "linger.ms", 5);
                try (var consumer = consumer()) {
                    consumer.assign(List.of(new TopicPartition(topic, 0)));
                    var records = take(consumer, 1000);
                    for (int i = 0; i < 1000; i++) that(records.get(i).value().equals("v" + i), i);
                }
            });
        }
        for (String acks : List.of("0", "1", "all")) {
            check("acks " + acks, () -> {
                String topic = topic(1, Map.of());
                send(topic, 0, 10, "acks", acks, "enable.idempotence", acks.equals("all"));
                try (var consumer = consumer()) {
                    consumer.assign(List.of(new TopicPartition(topic, 0)));
                    take(consumer, 10);
                }
            });
        }
        check("headers, null keys and values", () -> {
            String topic = topic(1, Map.of());
            try (var producer = producer(); var consumer = consumer()) {
                var record = new ProducerRecord<String, String>(topic, 0, null, (String) null);
                record.headers().add(new RecordHeader("h", "1".getBytes())).add(new RecordHeader("n", (byte[]) null));
                that(producer.send(record).get().offset() == 0);
                consumer.assign(List.of(new TopicPartition(topic, 0)));
                var read = take(consumer, 1).get(0);
                that(read.key() == null && read.value() == null);
                that(new String(read.headers().lastHeader("h").value()).equals("1"));
                that(read.headers().lastHeader("n").value() == null);
            }
        });
        check("too large", () -> {
            String topic = topic(1, Map.of("max.message.bytes", "500"));
            fails(RecordTooLargeException.class, () -> {
                try (var producer = producer()) {
                    producer.send(new ProducerRecord<>(topic, "x".repeat(2000))).get();
                }
            });
        });
        check("compacted topics want keys", () -> {
            String topic = topic(1, Map.of("cleanup.policy", "compact"));
            fails(InvalidRecordException.class, () -> {
                try (var producer = producer()) {
                    producer.send(new ProducerRecord<>(topic, "no key")).get();
                }
            });
            // Of a batch, those are told apart that are to blame.
            try (var producer = producer("linger.ms", "1000")) {
                List<Future<RecordMetadata>> sent = new ArrayList<>();
                for (String key : Arrays.asList("a", null, "b", null)) {
                    sent.add(producer.send(new ProducerRecord<>(topic, key, "value")));
                }
                producer.flush();
                for (int i = 0; i < 4; i++) {
                    Future<RecordMetadata> record = sent.get(i);
                    boolean blamed = i % 2 == 1;
                    fails(KafkaException.class, () -> {
                        try {
                            record.get();
                        } catch (ExecutionException e) {
                            that(e.getCause() instanceof InvalidRecordException == blamed, e.getCause());
                            throw e;
                        }
                    });
                }
            }
        });
        check("long poll", () -> {
            String topic = topic(1, Map.of());
            try (var consumer = consumer("fetch.max.wait.ms", "5000"); var producer = producer()) {
                consumer.assign(List.of(new TopicPartition(topic, 0)));
                consumer.poll(Duration.ofMillis(300));
                long start = System.nanoTime();
                producer.send(new ProducerRecord<>(topic, "now")).get();
                take(consumer, 1);
                that(System.nanoTime() - start < 2_500_000_000L, System.nanoTime() - start);
            }
        });
        check("many topics at once, small fetches", () -> {
            try (var consumer = consumer("max.partition.fetch.bytes", "2000", "fetch.max.bytes", "5000")) {
                List<TopicPartition> all = new ArrayList<>();
                for (int i = 0; i < 5; i++) {
                    String topic = topic(3, Map.of());
                    send(topic, 0, 300);
                    for (int p = 0; p < 3; p++) all.add(new TopicPartition(topic, p));
                }
                consumer.assign(all);
                take(consumer, 1500);
            }
        });
    }

    static void offsets() {
        check("beginning, end, times", () -> {
            String topic = topic(1, Map.of());
            var partition = new TopicPartition(topic, 0);
            send(topic, 0, 3);
            Thread.sleep(20);
            long between = System.currentTimeMillis();
            Thread.sleep(20);
            send(topic, 3, 5);
            try (var consumer = consumer()) {
                that(consumer.beginningOffsets(List.of(partition)).get(partition) == 0);
                that(consumer.endOffsets(List.of(partition)).get(partition) == 5);
                that(consumer.offsetsForTimes(Map.of(partition, between)).get(partition).offset() == 3);
                that(consumer.offsetsForTimes(Map.of(partition, between + 1_000_000)).get(partition) == null);
                consumer.assign(List.of(partition));
                consumer.seek(partition, 4);
                that(take(consumer, 1).get(0).value().equals("v4"));
            }
            var max = admin.listOffsets(Map.of(partition, OffsetSpec.maxTimestamp())).partitionResult(partition).get();
            that(max.offset() >= 3, max.offset());
        });
        check("out of range", () -> {
            String topic = topic(1, Map.of());
            var partition = new TopicPartition(topic, 0);
            send(topic, 0, 1);
            try (var consumer = consumer("auto.offset.reset", "none")) {
                consumer.assign(List.of(partition));
                consumer.seek(partition, 100);
                fails(org.apache.kafka.clients.consumer.OffsetOutOfRangeException.class, () -> {
                    for (int i = 0; i < 50; i++) consumer.poll(Duration.ofMillis(100));
                });
            }
        });
        check("records are deleted", () -> {
            String topic = topic(1, Map.of());
            var partition = new TopicPartition(topic, 0);
            send(topic, 0, 10);
            var deleted = admin.deleteRecords(Map.of(partition, RecordsToDelete.beforeOffset(4)));
            that(deleted.lowWatermarks().get(partition).get().lowWatermark() == 4);
            try (var consumer = consumer()) {
                consumer.assign(List.of(partition));
                that(take(consumer, 6).get(0).offset() == 4);
            }
        });
        check("commits with metadata", () -> {
            String topic = topic(1, Map.of());
            var partition = new TopicPartition(topic, 0);
            try (var consumer = consumer()) {
                consumer.assign(List.of(partition));
                consumer.commitSync(Map.of(partition, new OffsetAndMetadata(7, Optional.empty(), "note")));
                var committed = consumer.committed(Set.of(partition)).get(partition);
                that(committed.offset() == 7 && committed.metadata().equals("note"), committed);
                fails(CommitFailedException.class, () -> {
                    throw new CommitFailedException();
                });
                fails(KafkaException.class, () -> consumer.commitSync(
                    Map.of(partition, new OffsetAndMetadata(7, Optional.empty(), "x".repeat(5000)))));
            }
        });
    }

    static void groups() {
        for (String assignor : List.of("RangeAssignor", "RoundRobinAssignor", "StickyAssignor", "CooperativeStickyAssignor")) {
            check("rebalance with " + assignor, () -> {
                String topic = topic(4, Map.of()), group = fresh("g");
                String strategy = "org.apache.kafka.clients.consumer." + assignor;
                send(topic, 0, 100);
                try (var a = consumer("group.id", group, "partition.assignment.strategy", strategy)) {
                    a.subscribe(List.of(topic));
                    take(a, 100);
                    a.commitSync();
                    try (var b = consumer("group.id", group, "partition.assignment.strategy", strategy)) {
                        b.subscribe(List.of(topic));
                        until(() -> a.assignment().size() == 2 && b.assignment().size() == 2, () -> {
                            a.poll(Duration.ofMillis(50));
                            b.poll(Duration.ofMillis(50));
                        });
                        send(topic, 100, 200);
                        int[] seen = {0};
                        until(() -> seen[0] == 100, () -> {
                            seen[0] += a.poll(Duration.ofMillis(50)).count();
                            seen[0] += b.poll(Duration.ofMillis(50)).count();
                        });
                        a.commitSync();
                        b.commitSync();
                    }
                    until(() -> a.assignment().size() == 4, () -> a.poll(Duration.ofMillis(50)));
                }
            });
        }
        check("static members", () -> {
            String topic = topic(2, Map.of()), group = fresh("g");
            var a = consumer("group.id", group, "group.instance.id", "one");
            a.subscribe(List.of(topic));
            until(() -> a.assignment().size() == 2, () -> a.poll(Duration.ofMillis(50)));
            var b = consumer("group.id", group, "group.instance.id", "one");
            b.subscribe(List.of(topic));
            until(() -> b.assignment().size() == 2, () -> b.poll(Duration.ofMillis(50)));
            fails(FencedInstanceIdException.class, () -> {
                for (int i = 0; i < 100; i++) a.poll(Duration.ofMillis(50));
            });
            a.close();
            b.close();
            admin.removeMembersFromConsumerGroup(group,
                new RemoveMembersFromConsumerGroupOptions(List.of(new MemberToRemove("one")))).all().get();
        });
        check("groups are described, listed, altered, deleted", () -> {
            String topic = topic(2, Map.of()), group = fresh("g");
            var partition = new TopicPartition(topic, 1);
            try (var consumer = consumer("group.id", group, "client.id", "me")) {
                consumer.subscribe(List.of(topic));
                until(() -> consumer.assignment().size() == 2, () -> consumer.poll(Duration.ofMillis(50)));
                var described = admin.describeConsumerGroups(List.of(group)).all().get().get(group);
                that(described.toString().contains("Stable"), described);
                var member = described.members().iterator().next();
                that(member.clientId().equals("me") && member.assignment().topicPartitions().size() == 2, member);
                fails(GroupNotEmptyException.class, () -> admin.deleteConsumerGroups(List.of(group)).all().get());
                fails(GroupSubscribedToTopicException.class,
                    () -> admin.deleteConsumerGroupOffsets(group, Set.of(partition)).all().get());
            }
            admin.alterConsumerGroupOffsets(group, Map.of(partition, new OffsetAndMetadata(3))).all().get();
            var offsets = admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get();
            that(offsets.get(partition).offset() == 3, offsets);
            admin.deleteConsumerGroupOffsets(group, Set.of(partition)).all().get();
            that(admin.listConsumerGroups().all().get().stream().anyMatch(g -> g.groupId().equals(group)));
            admin.deleteConsumerGroups(List.of(group)).all().get();
            // The client before 4 is told that it is dead, a later one that there is none.
            try {
                that(admin.describeConsumerGroups(List.of(group)).all().get().toString().contains("Dead"));
            } catch (ExecutionException e) {
                that(e.getCause() instanceof GroupIdNotFoundException, e);
            }
        });
    }

    static KafkaProducer<String, String> transactional(String id, Object... more) {
        var config = config("transactional.id", id);
        config.putAll(config(more));
        var producer = new KafkaProducer<>(config, new StringSerializer(), new StringSerializer());
        producer.initTransactions();
        return producer;
    }

    static List<String> read(String topic, String isolation, int count) {
        try (var consumer = consumer("isolation.level", isolation)) {
            consumer.assign(List.of(new TopicPartition(topic, 0)));
            List<String> values = new ArrayList<>(take(consumer, count).stream().map(ConsumerRecord::value).toList());
            // Nothing more comes.
            consumer.poll(Duration.ofMillis(200)).forEach(r -> values.add(r.value()));
            return values;
        }
    }

    static List<String> committed(String topic, int count) { return read(topic, "read_committed", count); }

    /// Where to go on after these records (the client before 4 does not say).
    static Map<TopicPartition, OffsetAndMetadata> next(ConsumerRecords<String, String> records) {
        Map<TopicPartition, OffsetAndMetadata> next = new HashMap<>();
        for (var r : records) next.put(new TopicPartition(r.topic(), r.partition()), new OffsetAndMetadata(r.offset() + 1));
        return next;
    }

    static void transactions() {
        check("committed transactions are read, aborted ones are not", () -> {
            String topic = topic(1, Map.of());
            try (var producer = transactional(fresh("tx"))) {
                for (String value : List.of("a", "-b", "c", "-d", "e")) {
                    producer.beginTransaction();
                    producer.send(new ProducerRecord<>(topic, value));
                    producer.send(new ProducerRecord<>(topic, value + value));
                    producer.flush();
                    if (value.startsWith("-")) producer.abortTransaction(); else producer.commitTransaction();
                }
                // Without any record.
                producer.beginTransaction();
                producer.commitTransaction();
                producer.beginTransaction();
                producer.abortTransaction();
            }
            that(committed(topic, 6).equals(List.of("a", "aa", "c", "cc", "e", "ee")));
            that(read(topic, "read_uncommitted", 10).size() == 10);
        });
        check("an open transaction holds readers up, and nobody else", () -> {
            String topic = topic(1, Map.of());
            var partition = new TopicPartition(topic, 0);
            try (var producer = transactional(fresh("tx")); var consumer = consumer("isolation.level", "read_committed")) {
                send(topic, 0, 2);
                producer.beginTransaction();
                producer.send(new ProducerRecord<>(topic, "open")).get();
                send(topic, 2, 4);
                that(consumer.endOffsets(List.of(partition)).get(partition) == 2);
                that(admin.listOffsets(Map.of(partition, OffsetSpec.latest())).partitionResult(partition).get().offset() == 5);
                that(committed(topic, 2).equals(List.of("v0", "v1")));
                producer.commitTransaction();
                that(committed(topic, 5).equals(List.of("v0", "v1", "open", "v2", "v3")));
            }
        });
        check("many partitions, many transactions", () -> {
            String topic = topic(5, Map.of());
            try (var producer = transactional(fresh("tx"), "linger.ms", 0);
                 var consumer = consumer("isolation.level", "read_committed")) {
                for (int t = 0; t < 30; t++) {
                    producer.beginTransaction();
                    for (int i = 0; i < 20; i++) producer.send(new ProducerRecord<>(topic, i % 5, "k", t + " " + i));
                    if (t % 3 == 0) producer.abortTransaction(); else producer.commitTransaction();
                }
                consumer.assign(List.of(0, 1, 2, 3, 4).stream().map(p -> new TopicPartition(topic, p)).toList());
                that(take(consumer, 400).stream().noneMatch(r -> Integer.parseInt(r.value().split(" ")[0]) % 3 == 0));
            }
        });
        check("a new producer fences the old one", () -> {
            String topic = topic(1, Map.of()), id = fresh("tx");
            var old = transactional(id);
            old.beginTransaction();
            old.send(new ProducerRecord<>(topic, "zombie")).get();
            var next = transactional(id);
            fails(ProducerFencedException.class, old::commitTransaction);
            old.close();
            next.beginTransaction();
            next.send(new ProducerRecord<>(topic, "new"));
            next.commitTransaction();
            var newest = transactional(id);
            next.beginTransaction();
            // The client before 4 hears of it when it adds the partition, a later one from the partition itself.
            fails(ApiException.class, () -> {
                try {
                    next.send(new ProducerRecord<>(topic, "zombie")).get();
                } catch (ExecutionException e) {
                    that(e.getCause() instanceof InvalidProducerEpochException || e.getCause() instanceof ProducerFencedException, e);
                    throw e;
                }
            });
            next.close();
            newest.close();
            that(committed(topic, 1).equals(List.of("new")));
        });
        check("a transaction that lasts too long is aborted", () -> {
            String topic = topic(1, Map.of()), id = fresh("tx");
            try (var producer = transactional(id, "transaction.timeout.ms", 500)) {
                producer.beginTransaction();
                producer.send(new ProducerRecord<>(topic, "late")).get();
                var state = new TransactionState[1];
                until(() -> state[0] == TransactionState.COMPLETE_ABORT, () -> {
                    try {
                        Thread.sleep(100);
                        state[0] = admin.describeTransactions(List.of(id)).description(id).get().state();
                    } catch (Exception e) { throw new RuntimeException(e); }
                });
                fails(KafkaException.class, producer::commitTransaction);
            }
            send(topic, 0, 1);
            that(committed(topic, 1).equals(List.of("v0")));
            fails(KafkaException.class, () -> transactional(id, "transaction.timeout.ms", 1_000_000_000));
        });
        check("consume, transform, produce", () -> {
            String from = topic(1, Map.of()), to = topic(1, Map.of()), group = fresh("g"), id = fresh("tx");
            send(from, 0, 200);
            var partition = new TopicPartition(from, 0);
            long next = 0;
            for (int round = 0; next < 200; round++) {
                // Every round is a new process: the one before it was stopped at a bad moment.
                try (var consumer = consumer("group.id", group, "max.poll.records", 20, "isolation.level", "read_committed");
                     var producer = transactional(id)) {
                    consumer.subscribe(List.of(from));
                    for (int batches = 0; batches < 3 && next < 200; ) {
                        var records = consumer.poll(Duration.ofMillis(200));
                        if (records.isEmpty()) continue;
                        producer.beginTransaction();
                        for (var r : records) producer.send(new ProducerRecord<>(to, r.key(), r.value()));
                        producer.sendOffsetsToTransaction(next(records), consumer.groupMetadata());
                        if (++batches == 3 && round % 2 == 0) {
                            producer.abortTransaction();
                        } else {
                            producer.commitTransaction();
                            next = next(records).get(partition).offset();
                            that(consumer.committed(Set.of(partition)).get(partition).offset() == next);
                        }
                    }
                }
            }
            var copied = committed(to, 200);
            for (int i = 0; i < 200; i++) that(copied.get(i).equals("v" + i), i, copied.get(i));
        });
        check("offsets of a transaction count from its commit on", () -> {
            String topic = topic(1, Map.of()), group = fresh("g");
            var partition = new TopicPartition(topic, 0);
            try (var producer = transactional(fresh("tx")); var patient = consumer("group.id", group)) {
                for (boolean commit : List.of(false, true)) {
                    producer.beginTransaction();
                    producer.sendOffsetsToTransaction(Map.of(partition, new OffsetAndMetadata(7, "note")),
                        new ConsumerGroupMetadata(group));
                    that(admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get().get(partition) == null);
                    fails(org.apache.kafka.common.errors.TimeoutException.class, () -> patient.committed(Set.of(partition), Duration.ofMillis(500)));
                    if (commit) producer.commitTransaction(); else producer.abortTransaction();
                    var committed = patient.committed(Set.of(partition)).get(partition);
                    that(commit ? committed.offset() == 7 && committed.metadata().equals("note") : committed == null, committed);
                }
            }
        });
        check("who has left the group commits no offsets", () -> {
            String topic = topic(1, Map.of()), group = fresh("g");
            var partition = new TopicPartition(topic, 0);
            try (var producer = transactional(fresh("tx")); var consumer = consumer("group.id", group)) {
                consumer.subscribe(List.of(topic));
                until(() -> consumer.assignment().size() == 1, () -> consumer.poll(Duration.ofMillis(50)));
                var stale = new ConsumerGroupMetadata(group, consumer.groupMetadata().generationId() - 1,
                    consumer.groupMetadata().memberId(), Optional.empty());
                producer.beginTransaction();
                fails(CommitFailedException.class,
                    () -> producer.sendOffsetsToTransaction(Map.of(partition, new OffsetAndMetadata(1)), stale));
                producer.abortTransaction();
            }
        });
        check("transactions are listed, described, aborted", () -> {
            String topic = topic(2, Map.of()), id = fresh("tx");
            var partition = new TopicPartition(topic, 1);
            try (var producer = transactional(id)) {
                producer.beginTransaction();
                producer.send(new ProducerRecord<>(topic, 1, "k", "open")).get();
                var described = admin.describeTransactions(List.of(id)).description(id).get();
                that(described.state() == TransactionState.ONGOING, described);
                that(described.topicPartitions().equals(Set.of(partition)), described);
                that(described.transactionStartTimeMs().isPresent() && described.transactionTimeoutMs() == 60_000, described);
                var options = new ListTransactionsOptions().filterStates(Set.of(TransactionState.ONGOING))
                    .filterProducerIds(Set.of(described.producerId()));
                var listed = admin.listTransactions(options).all().get();
                that(listed.size() == 1 && listed.iterator().next().transactionalId().equals(id), listed);
                that(admin.listTransactions(new ListTransactionsOptions().filterOnDuration(10_000_000)).all().get()
                    .stream().noneMatch(t -> t.transactionalId().equals(id)));
                var active = admin.describeProducers(List.of(partition)).partitionResult(partition).get().activeProducers().get(0);
                that(active.producerId() == described.producerId() && active.currentTransactionStartOffset().getAsLong() == 0, active);
                admin.abortTransaction(new AbortTransactionSpec(partition, active.producerId(), (short) active.producerEpoch(),
                    Math.max(0, active.coordinatorEpoch().orElse(0)))).all().get();
                that(committed(topic, 0).isEmpty());
                admin.fenceProducers(List.of(id)).all().get();
                fails(KafkaException.class, producer::commitTransaction);
            }
            fails(TransactionalIdNotFoundException.class, () -> admin.describeTransactions(List.of("none")).all().get());
        });
    }

    static void administration() {
        check("topics are created, described, deleted", () -> {
            String topic = topic(3, Map.of("retention.ms", "1000"));
            var described = admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic);
            that(described.partitions().size() == 3 && !described.topicId().equals(Uuid.ZERO_UUID), described);
            fails(TopicExistsException.class,
                () -> admin.createTopics(List.of(new NewTopic(topic, 1, (short) 1))).all().get());
            admin.deleteTopics(TopicCollection.ofTopicIds(List.of(described.topicId()))).all().get();
            // Apache Kafka's controller is ahead of its broker, which may still know the topic.
            until(() -> !admin.listTopics().names().toCompletionStage().toCompletableFuture().join().contains(topic), () -> {});
            fails(UnknownTopicOrPartitionException.class, () -> admin.describeTopics(List.of(topic)).allTopicNames().get());
        });
        check("topics are refused for reasons", () -> {
            fails(InvalidReplicationFactorException.class,
                () -> admin.createTopics(List.of(new NewTopic(fresh("t"), 1, (short) 2))).all().get());
            fails(InvalidPartitionsException.class,
                () -> admin.createTopics(List.of(new NewTopic(fresh("t"), 0, (short) 1))).all().get());
            fails(InvalidTopicException.class,
                () -> admin.createTopics(List.of(new NewTopic("not/good", 1, (short) 1))).all().get());
            fails(InvalidConfigurationException.class, () -> admin.createTopics(
                List.of(new NewTopic(fresh("t"), 1, (short) 1).configs(Map.of("retention.ms", "soon")))).all().get());
            fails(InvalidReplicaAssignmentException.class, () -> admin.createTopics(
                List.of(new NewTopic(fresh("t"), Map.of(0, List.of(77))))).all().get());
            String dry = fresh("dry");
            admin.createTopics(List.of(new NewTopic(dry, 1, (short) 1)), new CreateTopicsOptions().validateOnly(true))
                .all().get();
            that(!admin.listTopics().names().get().contains(dry));
        });
        check("what creating a topic answers", () -> {
            var made = admin.createTopics(List.of(new NewTopic(fresh("t"), Optional.empty(), Optional.empty())));
            String name = made.values().keySet().iterator().next();
            that(made.numPartitions(name).get() >= 1 && made.replicationFactor(name).get() == 1);
            that(made.config(name).get().get("cleanup.policy").value().equals("delete"));
        });
        check("partitions are added", () -> {
            String topic = topic(1, Map.of());
            admin.createPartitions(Map.of(topic, NewPartitions.increaseTo(3))).all().get();
            fails(InvalidPartitionsException.class,
                () -> admin.createPartitions(Map.of(topic, NewPartitions.increaseTo(2))).all().get());
            send(topic, 0, 50);
        });
        check("configs", () -> {
            String topic = topic(1, Map.of());
            var resource = new ConfigResource(ConfigResource.Type.TOPIC, topic);
            admin.incrementalAlterConfigs(Map.of(resource, List.of(
                new AlterConfigOp(new ConfigEntry("retention.ms", "5"), AlterConfigOp.OpType.SET),
                new AlterConfigOp(new ConfigEntry("cleanup.policy", "compact"), AlterConfigOp.OpType.APPEND)))).all().get();
            var options = new DescribeConfigsOptions().includeSynonyms(true).includeDocumentation(true);
            var config = admin.describeConfigs(List.of(resource), options).all().get().get(resource);
            that(config.get("retention.ms").value().equals("5"), config.get("retention.ms"));
            that(config.get("retention.ms").source() == ConfigEntry.ConfigSource.DYNAMIC_TOPIC_CONFIG);
            that(config.get("cleanup.policy").value().equals("delete,compact"));
            that(config.get("segment.bytes").isDefault() && config.get("segment.bytes").documentation() != null);
            // Behind it are hours, which are no synonym of milliseconds.
            that(config.get("retention.ms").synonyms().size() == 1, config.get("retention.ms").synonyms());
            that(config.get("segment.bytes").synonyms().size() == 1, config.get("segment.bytes").synonyms());
            var broker = new ConfigResource(ConfigResource.Type.BROKER, "1");
            that(admin.describeConfigs(List.of(broker)).all().get().get(broker).get("num.partitions") != null);
        });
        check("cluster, log folders, features, quorum", () -> {
            var cluster = admin.describeCluster();
            that(cluster.nodes().get().size() == 1 && !cluster.clusterId().get().isEmpty());
            that(!admin.describeLogDirs(List.of(1)).allDescriptions().get().get(1).isEmpty());
            that(admin.describeFeatures().featureMetadata().get().finalizedFeatures().containsKey("metadata.version"));
            that(admin.describeMetadataQuorum().quorumInfo().get().leaderId() == 1);
            that(admin.listPartitionReassignments().reassignments().get().isEmpty());
        });
        check("one log folder, and no other to move to", () -> {
            String topic = topic(1, Map.of());
            var folders = admin.describeLogDirs(List.of(1)).allDescriptions().get().get(1);
            String folder = folders.keySet().iterator().next();
            var sizes = folders.get(folder);
            that(sizes.totalBytes().getAsLong() >= sizes.usableBytes().getAsLong() && sizes.usableBytes().getAsLong() > 0);
            var replica = new TopicPartitionReplica(topic, 0, 1);
            admin.alterReplicaLogDirs(Map.of(replica, folder)).all().get();
            fails(LogDirNotFoundException.class, () ->
                admin.alterReplicaLogDirs(Map.of(replica, folder + "/elsewhere")).all().get());
            var nobody = new TopicPartitionReplica(topic, 7, 1);
            fails(UnknownTopicOrPartitionException.class, () ->
                admin.alterReplicaLogDirs(Map.of(nobody, folder)).all().get());
        });
    }
}
