import java.time.Duration;
import java.util.*;
import java.util.concurrent.*;
import java.util.function.BooleanSupplier;
import org.apache.kafka.clients.admin.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.*;
import org.springframework.context.annotation.*;
import org.springframework.context.support.PropertySourcesPlaceholderConfigurer;
import org.springframework.kafka.annotation.*;
import org.springframework.kafka.config.*;
import org.springframework.kafka.core.*;
import org.springframework.kafka.listener.*;
import org.springframework.kafka.support.KafkaHeaders;
import org.springframework.kafka.transaction.KafkaTransactionManager;
import org.springframework.messaging.handler.annotation.Header;
import org.springframework.scheduling.TaskScheduler;
import org.springframework.scheduling.concurrent.ThreadPoolTaskScheduler;
import org.springframework.util.backoff.FixedBackOff;

/** Spring for Apache Kafka: listeners, error handlers, retry topics, transactions. Usage: java -cp JARS Suite.java BOOTSTRAP */
public class Suite {
    interface Check { void run() throws Exception; }

    static String bootstrap, prefix = "spring-" + UUID.randomUUID().toString().substring(0, 8);
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

    static void until(BooleanSupplier holds, Object seen) throws Exception {
        for (long end = System.currentTimeMillis() + 40_000; !holds.getAsBoolean(); Thread.sleep(50)) {
            that(System.currentTimeMillis() < end, "it took too long", seen);
        }
    }

    static Map<String, Object> config(Object... pairs) {
        Map<String, Object> config = new HashMap<>(Map.of("bootstrap.servers", bootstrap));
        for (int i = 0; i < pairs.length; i += 2) config.put((String) pairs[i], pairs[i + 1]);
        return config;
    }

    static final Queue<String> plain = new ConcurrentLinkedQueue<>(), modern = new ConcurrentLinkedQueue<>(),
        failing = new ConcurrentLinkedQueue<>(), dead = new ConcurrentLinkedQueue<>(), retried = new ConcurrentLinkedQueue<>(),
        given = new ConcurrentLinkedQueue<>(), copied = new ConcurrentLinkedQueue<>();
    static final Queue<Integer> batches = new ConcurrentLinkedQueue<>();

    @Configuration(proxyBeanMethods = false)
    @EnableKafka
    @EnableKafkaRetryTopic
    static class Config {
        @Bean static PropertySourcesPlaceholderConfigurer placeholders() { return new PropertySourcesPlaceholderConfigurer(); }
        @Bean KafkaAdmin admin() { return new KafkaAdmin(config()); }
        @Bean KafkaAdmin.NewTopics topics() {
            var names = List.of("plain", "modern", "batch", "failing", "retry", "from", "to");
            return new KafkaAdmin.NewTopics(names.stream()
                .map(n -> TopicBuilder.name(prefix + "-" + n).partitions(2).replicas(1).build()).toArray(NewTopic[]::new));
        }
        @Bean TaskScheduler scheduler() { return new ThreadPoolTaskScheduler(); }
        @Bean ProducerFactory<String, String> producers() {
            return new DefaultKafkaProducerFactory<>(config(), new StringSerializer(), new StringSerializer());
        }
        @Bean ConsumerFactory<String, String> consumers() {
            var config = config("auto.offset.reset", "earliest", "session.timeout.ms", "6000", "heartbeat.interval.ms", "500");
            return new DefaultKafkaConsumerFactory<>(config, new StringDeserializer(), new StringDeserializer());
        }
        @Bean KafkaTemplate<String, String> kafkaTemplate(ProducerFactory<String, String> producers) {
            return new KafkaTemplate<>(producers);
        }
        @Bean ConcurrentKafkaListenerContainerFactory<String, String> kafkaListenerContainerFactory(
                ConsumerFactory<String, String> consumers, KafkaTemplate<String, String> template) {
            var factory = new ConcurrentKafkaListenerContainerFactory<String, String>();
            factory.setConsumerFactory(consumers);
            factory.setCommonErrorHandler(
                new DefaultErrorHandler(new DeadLetterPublishingRecoverer(template), new FixedBackOff(10, 2)));
            return factory;
        }
        @Bean ConcurrentKafkaListenerContainerFactory<String, String> batched(ConsumerFactory<String, String> consumers) {
            var factory = new ConcurrentKafkaListenerContainerFactory<String, String>();
            factory.setConsumerFactory(consumers);
            factory.setBatchListener(true);
            return factory;
        }
        @Bean ConcurrentKafkaListenerContainerFactory<String, String> modernFactory() {
            var factory = new ConcurrentKafkaListenerContainerFactory<String, String>();
            factory.setConsumerFactory(new DefaultKafkaConsumerFactory<>(
                config("auto.offset.reset", "earliest", "group.protocol", "consumer"), new StringDeserializer(),
                new StringDeserializer()));
            factory.setConcurrency(2);
            return factory;
        }
        @Bean Listeners listeners() { return new Listeners(); }
    }

    static class Listeners {
        @KafkaListener(topics = "${prefix}-plain", groupId = "${prefix}-plain", concurrency = "2")
        void plain(String value) { plain.add(value); }

        @KafkaListener(topics = "${prefix}-modern", groupId = "${prefix}-modern", containerFactory = "modernFactory")
        void modern(String value) { modern.add(value); }

        @KafkaListener(topics = "${prefix}-batch", groupId = "${prefix}-batch", containerFactory = "batched")
        void batch(List<String> values) { batches.add(values.size()); }

        @KafkaListener(topics = "${prefix}-failing", groupId = "${prefix}-failing")
        void failing(String value) {
            failing.add(value);
            if (value.startsWith("poison")) throw new IllegalStateException("it is " + value);
        }

        @KafkaListener(topics = "${prefix}-failing-dlt", groupId = "${prefix}-dead")
        void dead(String value, @Header(KafkaHeaders.DLT_ORIGINAL_TOPIC) byte[] topic) {
            dead.add(value + " of " + new String(topic));
        }

        @RetryableTopic(attempts = "3", backOff = @BackOff(delay = 100), kafkaTemplate = "kafkaTemplate")
        @KafkaListener(topics = "${prefix}-retry", groupId = "${prefix}-retry")
        void retry(String value, @Header(KafkaHeaders.RECEIVED_TOPIC) String topic) {
            retried.add(topic.substring(prefix.length()) + " " + value);
            if (value.startsWith("poison")) throw new IllegalStateException("it is " + value);
        }

        @DltHandler
        void given(String value) { given.add(value); }
    }

    public static void main(String[] args) throws Exception {
        bootstrap = args.length > 0 ? args[0] : "127.0.0.1:9092";
        System.setProperty("prefix", prefix);
        try (var context = new AnnotationConfigApplicationContext(Config.class)) {
            @SuppressWarnings("unchecked") KafkaTemplate<String, String> template = context.getBean(KafkaTemplate.class);
            listeners(template);
            failures(template);
        }
        transactions();
        System.out.println(passed + " passed, " + failed + " failed");
        System.exit(failed == 0 ? 0 : 1);
    }

    static void send(KafkaTemplate<String, String> template, String topic, int count) throws Exception {
        for (int i = 0; i < count; i++) template.send(prefix + "-" + topic, "k" + i, "v" + i).get(20, TimeUnit.SECONDS);
    }

    static void listeners(KafkaTemplate<String, String> template) {
        check("a listener with two threads", () -> {
            send(template, "plain", 50);
            until(() -> plain.size() == 50, plain);
            that(new HashSet<>(plain).size() == 50, plain);
        });
        check("a listener with the new group protocol", () -> {
            send(template, "modern", 50);
            until(() -> modern.size() == 50, modern);
        });
        check("a listener of batches", () -> {
            send(template, "batch", 50);
            until(() -> batches.stream().mapToInt(n -> n).sum() == 50, batches);
        });
        check("what was read is committed", () -> {
            try (var admin = Admin.create(config())) {
                until(() -> {
                    try {
                        var offsets = admin.listConsumerGroupOffsets(prefix + "-plain").partitionsToOffsetAndMetadata().get();
                        return offsets.values().stream().mapToLong(OffsetAndMetadata::offset).sum() == 50;
                    } catch (Exception e) {
                        throw new RuntimeException(e);
                    }
                }, "offsets");
            }
        });
    }

    static void failures(KafkaTemplate<String, String> template) {
        check("a poisonous record is tried three times, then published to the dead letters", () -> {
            template.send(prefix + "-failing", "k", "poison").get();
            template.send(prefix + "-failing", "k", "after").get();
            until(() -> dead.size() == 1 && failing.contains("after"), List.of(failing, dead));
            that(failing.stream().filter("poison"::equals).count() == 3, failing);
            that(dead.peek().equals("poison of " + prefix + "-failing"), dead);
        });
        check("retry topics", () -> {
            template.send(prefix + "-retry", "k", "poison").get();
            template.send(prefix + "-retry", "k", "good").get();
            until(() -> given.size() == 1 && retried.contains("-retry good"), List.of(retried, given));
            var tries = retried.stream().filter(r -> r.endsWith("poison")).toList();
            that(tries.equals(List.of("-retry poison", "-retry-retry poison", "-retry-retry poison")), tries);
        });
    }

    static void transactions() {
        check("what a listener writes and what it has read are one transaction", () -> {
            var factory = new DefaultKafkaProducerFactory<>(config(), new StringSerializer(), new StringSerializer());
            factory.setTransactionIdPrefix(prefix + "-tx-");
            var template = new KafkaTemplate<>(factory);
            template.executeInTransaction(t -> {
                for (int i = 0; i < 10; i++) t.send(prefix + "-from", "k" + i, "v" + i);
                return null;
            });
            var properties = new ContainerProperties(prefix + "-from");
            properties.setGroupId(prefix + "-tx");
            properties.setKafkaAwareTransactionManager(new KafkaTransactionManager<>(factory));
            Set<String> once = ConcurrentHashMap.newKeySet();
            properties.setMessageListener((MessageListener<String, String>) record -> {
                template.send(prefix + "-to", record.key(), record.value());
                // The first try is rolled back, with what it wrote.
                if (once.add(record.value()) && record.value().equals("v5")) throw new IllegalStateException("once");
            });
            var consumers = new DefaultKafkaConsumerFactory<>(config("auto.offset.reset", "earliest", "isolation.level",
                "read_committed"), new StringDeserializer(), new StringDeserializer());
            var container = new KafkaMessageListenerContainer<>(consumers, properties);
            container.setAfterRollbackProcessor(new DefaultAfterRollbackProcessor<>(new FixedBackOff(10, 5)));
            container.start();
            try (var consumer = consumers.createConsumer(prefix + "-check", "")) {
                consumer.subscribe(List.of(prefix + "-to"));
                for (long end = System.currentTimeMillis() + 30_000; copied.size() < 10 && System.currentTimeMillis() < end;) {
                    consumer.poll(Duration.ofMillis(100)).forEach(r -> copied.add(r.value()));
                }
                consumer.poll(Duration.ofMillis(500)).forEach(r -> copied.add(r.value()));
                that(copied.size() == 10 && new HashSet<>(copied).size() == 10, copied);
            } finally {
                container.stop();
                factory.destroy();
            }
        });
    }
}
