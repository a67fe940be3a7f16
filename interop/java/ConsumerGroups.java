import java.time.Duration;
import java.util.*;
import java.util.concurrent.*;
import java.util.function.BooleanSupplier;
import org.apache.kafka.clients.admin.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.*;
import org.apache.kafka.common.errors.*;
import org.apache.kafka.common.serialization.*;

/** The consumer group protocol (KIP-848) of kafka-clients 4. Usage: java -cp JARS ConsumerGroups.java BOOTSTRAP */
public class ConsumerGroups {
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

    static String topic(int partitions) throws Exception { return topic(fresh("java"), partitions); }

    static String topic(String name, int partitions) throws Exception {
        admin.createTopics(List.of(new NewTopic(name, partitions, (short) 1))).all().get();
        return name;
    }

    static Map<String, Object> config(Object... pairs) {
        Map<String, Object> config = new HashMap<>(Map.of("bootstrap.servers", bootstrap));
        for (int i = 0; i < pairs.length; i += 2) config.put((String) pairs[i], pairs[i + 1]);
        return config;
    }

    static KafkaConsumer<String, String> consumer(String group, Object... more) {
        Map<String, Object> config = config("group.id", group, "group.protocol", "consumer",
            "auto.offset.reset", "earliest", "enable.auto.commit", "false", "metadata.max.age.ms", "1000");
        config.putAll(config(more));
        return new KafkaConsumer<>(config, new StringDeserializer(), new StringDeserializer());
    }

    static void send(String topic, int from, int to) throws Exception {
        try (var producer = new KafkaProducer<>(config(), new StringSerializer(), new StringSerializer())) {
            List<Future<RecordMetadata>> sent = new ArrayList<>();
            for (int i = from; i < to; i++) sent.add(producer.send(new ProducerRecord<>(topic, "k" + i, "v" + i)));
            for (var future : sent) future.get(20, TimeUnit.SECONDS);
        }
    }

    static void until(BooleanSupplier holds, KafkaConsumer<?, ?>... polled) {
        long end = System.currentTimeMillis() + 40_000;
        while (!holds.getAsBoolean()) {
            that(System.currentTimeMillis() < end, "it took too long", polled[0].assignment());
            for (var consumer : polled) consumer.poll(Duration.ofMillis(50));
        }
    }

    static ConsumerGroupDescription describe(String group) {
        try {
            return admin.describeConsumerGroups(List.of(group)).all().get().get(group);
        } catch (Exception e) {
            throw new RuntimeException(e);
        }
    }

    public static void main(String[] args) throws Exception {
        bootstrap = args.length > 0 ? args[0] : "127.0.0.1:9092";
        admin = Admin.create(config());
        assignments();
        members();
        migrations();
        administration();
        admin.close();
        System.out.println(passed + " passed, " + failed + " failed");
        System.exit(failed == 0 ? 0 : 1);
    }

    static void assignments() {
        for (String assignor : List.of("uniform", "range")) {
            check(assignor + ": members come and go, and nothing is lost", () -> {
                String topic = topic(4), group = fresh("g");
                try (var a = consumer(group, "group.remote.assignor", assignor)) {
                    a.subscribe(List.of(topic));
                    until(() -> a.assignment().size() == 4, a);
                    send(topic, 0, 100);
                    Set<String> seen = ConcurrentHashMap.newKeySet();
                    Runnable take = () -> a.poll(Duration.ofMillis(50)).forEach(r -> seen.add(r.value()));
                    try (var b = consumer(group, "group.remote.assignor", assignor)) {
                        b.subscribe(List.of(topic));
                        long end = System.currentTimeMillis() + 40_000;
                        while (b.assignment().size() != 2 || a.assignment().size() != 2 || seen.size() < 100) {
                            that(System.currentTimeMillis() < end, a.assignment(), b.assignment(), seen.size());
                            take.run();
                            b.poll(Duration.ofMillis(50)).forEach(r -> seen.add(r.value()));
                        }
                        a.commitSync();
                        b.commitSync();
                    }
                    until(() -> a.assignment().size() == 4, a);
                    that(describe(group).partitionAssignor().equals(assignor), describe(group));
                }
            });
        }
        check("committed offsets are gone on from", () -> {
            String topic = topic(2), group = fresh("g");
            send(topic, 0, 50);
            for (int round = 0; round < 2; round++) {
                try (var consumer = consumer(group)) {
                    consumer.subscribe(List.of(topic));
                    int[] seen = {0};
                    long end = System.currentTimeMillis() + 20_000;
                    while (seen[0] < 50 && System.currentTimeMillis() < end) {
                        seen[0] += consumer.poll(Duration.ofMillis(50)).count();
                    }
                    that(seen[0] == 50, round, seen[0]);
                    consumer.commitSync();
                    that(consumer.committed(Set.of(new TopicPartition(topic, 0))).size() == 1);
                }
                send(topic, 0, 50);
            }
        });
        check("new partitions are assigned, deleted topics taken away", () -> {
            String first = topic(1), second = topic(1);
            try (var consumer = consumer(fresh("g"), "allow.auto.create.topics", "false")) {
                consumer.subscribe(List.of(first, second));
                until(() -> consumer.assignment().size() == 2, consumer);
                admin.createPartitions(Map.of(first, NewPartitions.increaseTo(3))).all().get();
                until(() -> consumer.assignment().size() == 4, consumer);
                admin.deleteTopics(List.of(second)).all().get();
                until(() -> consumer.assignment().size() == 3, consumer);
            }
        });
        check("a subscription by pattern gets topics as they come", () -> {
            String prefix = fresh("re2");
            topic(prefix + "-a", 1);
            try (var consumer = consumer(fresh("g"))) {
                consumer.subscribe(new SubscriptionPattern(prefix + "-[ab]"));
                until(() -> consumer.assignment().size() == 1, consumer);
                topic(prefix + "-b", 2);
                topic(prefix + "-c", 1);
                until(() -> consumer.assignment().size() == 3, consumer);
            }
        });
        check("a pattern that is none is refused", () -> {
            try (var consumer = consumer(fresh("g"))) {
                consumer.subscribe(new SubscriptionPattern("(["));
                fails(InvalidRegularExpression.class, () -> {
                    for (int i = 0; i < 100; i++) consumer.poll(Duration.ofMillis(50));
                });
            }
        });
        check("an assignor that is none is refused", () -> {
            try (var consumer = consumer(fresh("g"), "group.remote.assignor", "none")) {
                consumer.subscribe(List.of(topic(1)));
                fails(UnsupportedAssignorException.class, () -> {
                    for (int i = 0; i < 100; i++) consumer.poll(Duration.ofMillis(50));
                });
            }
        });
    }

    static void members() {
        check("a static member keeps its place while it is away", () -> {
            String topic = topic(2), group = fresh("g");
            try (var a = consumer(group, "group.instance.id", "a")) {
                a.subscribe(List.of(topic));
                var b = consumer(group, "group.instance.id", "b");
                b.subscribe(List.of(topic));
                until(() -> a.assignment().size() == 1 && b.assignment().size() == 1, a, b);
                var before = b.assignment();
                int epoch = describe(group).groupEpoch().get();
                b.close();
                var again = consumer(group, "group.instance.id", "b");
                again.subscribe(List.of(topic));
                until(() -> again.assignment().equals(before), a, again);
                that(describe(group).groupEpoch().get() == epoch, epoch, describe(group));
                again.close();
            }
        });
        check("a second one with the same instance id is refused", () -> {
            String topic = topic(1), group = fresh("g");
            try (var a = consumer(group, "group.instance.id", "a"); var b = consumer(group, "group.instance.id", "a")) {
                a.subscribe(List.of(topic));
                until(() -> a.assignment().size() == 1, a);
                b.subscribe(List.of(topic));
                fails(UnreleasedInstanceIdException.class, () -> {
                    for (int i = 0; i < 100; i++) b.poll(Duration.ofMillis(50));
                });
            }
        });
        check("members are removed by an administrator", () -> {
            String topic = topic(1), group = fresh("g");
            var gone = consumer(group, "group.instance.id", "a");
            gone.subscribe(List.of(topic));
            until(() -> gone.assignment().size() == 1, gone);
            gone.close();
            admin.removeMembersFromConsumerGroup(group,
                new RemoveMembersFromConsumerGroupOptions(List.of(new MemberToRemove("a")))).all().get();
            that(describe(group).members().isEmpty(), describe(group));
        });
    }

    static void migrations() {
        check("a group goes from the classic protocol to the new one and back, at work", () -> {
            String topic = topic(4), group = fresh("g");
            Object[] classic = {"group.protocol", "classic", "session.timeout.ms", "6000", "heartbeat.interval.ms", "500",
                "partition.assignment.strategy", CooperativeStickyAssignor.class.getName()};
            try (var a = consumer(group, classic)) {
                a.subscribe(List.of(topic));
                until(() -> a.assignment().size() == 4, a);
                that(describe(group).type() == GroupType.CLASSIC, describe(group));
                send(topic, 0, 40);
                until(() -> a.committed(a.assignment()).size() >= 0 && a.position(a.assignment().iterator().next()) > 0, a);
                a.commitSync();
                try (var b = consumer(group)) {
                    b.subscribe(List.of(topic));
                    until(() -> a.assignment().size() == 2 && b.assignment().size() == 2, a, b);
                    that(describe(group).type() == GroupType.CONSUMER, describe(group));
                    that(Collections.disjoint(a.assignment(), b.assignment()));
                    a.commitSync();
                    b.commitSync();
                }
                until(() -> a.assignment().size() == 4, a);
                that(describe(group).type() == GroupType.CLASSIC, describe(group));
            }
        });
        check("an empty group takes either protocol, and keeps its offsets", () -> {
            String topic = topic(1), group = fresh("g");
            send(topic, 0, 10);
            for (String protocol : List.of("classic", "consumer", "classic")) {
                try (var consumer = consumer(group, "group.protocol", protocol)) {
                    consumer.subscribe(List.of(topic));
                    until(() -> consumer.assignment().size() == 1, consumer);
                    until(() -> consumer.position(new TopicPartition(topic, 0)) == 10, consumer);
                    consumer.commitSync();
                }
            }
        });
    }

    static void administration() {
        check("groups are described, listed, altered, deleted", () -> {
            String topic = topic(2), group = fresh("g");
            var partition = new TopicPartition(topic, 1);
            try (var consumer = consumer(group, "client.id", "me")) {
                consumer.subscribe(List.of(topic));
                until(() -> consumer.assignment().size() == 2, consumer);
                var described = describe(group);
                that(described.groupState() == GroupState.STABLE && described.type() == GroupType.CONSUMER, described);
                var member = described.members().iterator().next();
                that(member.clientId().equals("me"), member);
                that(member.assignment().topicPartitions().size() == 2, member);
                that(member.targetAssignment().get().topicPartitions().size() == 2, member);
                that(member.memberEpoch().isPresent() && described.targetAssignmentEpoch().isPresent(), described);
                var listed = admin.listGroups(ListGroupsOptions.forConsumerGroups()).all().get();
                that(listed.stream().anyMatch(g -> g.groupId().equals(group) && g.type().get() == GroupType.CONSUMER));
                var classic = admin.listGroups(new ListGroupsOptions().withTypes(Set.of(GroupType.CLASSIC))).all().get();
                that(classic.stream().noneMatch(g -> g.groupId().equals(group)));
                fails(GroupNotEmptyException.class, () -> admin.deleteConsumerGroups(List.of(group)).all().get());
                fails(GroupSubscribedToTopicException.class,
                    () -> admin.deleteConsumerGroupOffsets(group, Set.of(partition)).all().get());
                fails(UnknownMemberIdException.class, () -> admin.alterConsumerGroupOffsets(group,
                    Map.of(partition, new OffsetAndMetadata(1))).all().get());
                fails(GroupIdNotFoundException.class,
                    () -> admin.describeClassicGroups(List.of(group)).all().get());
            }
            that(describe(group).groupState() == GroupState.EMPTY, describe(group));
            admin.alterConsumerGroupOffsets(group, Map.of(partition, new OffsetAndMetadata(3))).all().get();
            var offsets = admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get();
            that(offsets.get(partition).offset() == 3, offsets);
            admin.deleteConsumerGroupOffsets(group, Set.of(partition)).all().get();
            admin.deleteConsumerGroups(List.of(group)).all().get();
            fails(GroupIdNotFoundException.class, () -> admin.describeConsumerGroups(List.of(group)).all().get());
        });
        check("transactions are listed by a pattern of their ids", () -> {
            String topic = topic(1), id = fresh("tx");
            try (var producer = new KafkaProducer<>(config("transactional.id", id), new StringSerializer(),
                    new StringSerializer())) {
                producer.initTransactions();
                producer.beginTransaction();
                producer.send(new ProducerRecord<>(topic, "v")).get();
                var options = new ListTransactionsOptions().filterOnTransactionalIdPattern(id.substring(0, 5) + ".*");
                that(admin.listTransactions(options).all().get().stream().anyMatch(t -> t.transactionalId().equals(id)));
                fails(InvalidRegularExpression.class, () -> admin.listTransactions(
                    new ListTransactionsOptions().filterOnTransactionalIdPattern("(")).all().get());
                producer.abortTransaction();
            }
        });
        check("the feature is finalized", () -> {
            var features = admin.describeFeatures().featureMetadata().get().finalizedFeatures();
            that(features.get("group.version").maxVersionLevel() == 1, features);
        });
    }
}
