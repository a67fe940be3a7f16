#!/usr/bin/env bash
# Apache Kafka's own command line tools. Usage: suite.sh BOOTSTRAP, with the tools' jars in CLASSPATH.
set -u
b=${1:-127.0.0.1:9092}
t=tools-$$-$RANDOM
passed=0 failed=0
kafka() { timeout 60 java -XX:TieredStopAtLevel=1 -XX:+UseSerialGC "$@" 2>&1 | grep -v -e SLF4J -e log4j; return "${PIPESTATUS[0]}"; }
topics() { kafka org.apache.kafka.tools.TopicCommand --bootstrap-server "$b" "$@"; }
groups() { kafka org.apache.kafka.tools.consumer.group.ConsumerGroupCommand --bootstrap-server "$b" "$@"; }
transactions() { kafka org.apache.kafka.tools.TransactionsCommand --bootstrap-server "$b" "$@"; }
acls() { kafka org.apache.kafka.tools.AclCommand --bootstrap-server "$b" "$@"; }
configs() { kafka kafka.admin.ConfigCommand --bootstrap-server "$b" "$@"; }
check() { # NAME PATTERN COMMAND…: its output must match
  local out
  out=$("${@:3}")
  if grep -q -e "$2" <<<"$out"; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAILED $1: $out"; fi
}
check "topics create" "Created topic $t" topics --create --topic "$t" --partitions 2 --config retention.ms=1000000
check "topics create again" 'already exists' topics --create --topic "$t"
check "topics create, factor 3" 'replication factor' topics --create --topic "$t-3" --replication-factor 3
check "topics describe" 'PartitionCount: 2.*retention.ms=1000000' topics --describe --topic "$t"
check "topics list" "^$t\$" topics --list
check "topics alter" 'PartitionCount: 3' eval "topics --alter --topic $t --partitions 3; topics --describe --topic $t"
check "topics alter, fewer" 'would not be an increase' topics --alter --topic "$t" --partitions 1
check "console producer" '^$' eval "seq 1 50 | kafka org.apache.kafka.tools.ConsoleProducer --bootstrap-server $b --topic $t; echo"
check "console consumer" 'Processed a total of 50 messages' \
  kafka org.apache.kafka.tools.consumer.ConsoleConsumer --bootstrap-server "$b" --topic "$t" --from-beginning --max-messages 50 --group "$t-g"
check "groups list" "$t-g" groups --list
check "groups describe" "$t-g  *$t .* 0  *-" groups --describe --group "$t-g"
check "groups state" 'Empty' groups --describe --group "$t-g" --state
check "groups members" 'no active members' groups --describe --group "$t-g" --members
check "groups reset, dry" "$t-g .* 0 " groups --reset-offsets --group "$t-g" --topic "$t" --to-earliest --dry-run
check "groups reset" "$t-g .* 0 " groups --reset-offsets --group "$t-g" --topic "$t" --to-earliest --execute
check "groups delete offsets" 'Successful' groups --delete-offsets --group "$t-g" --topic "$t"
check "groups delete" 'Deletion' groups --delete --group "$t-g"
kafka org.apache.kafka.tools.consumer.ConsoleConsumer --bootstrap-server "$b" --topic "$t" --group "$t-new" \
  --consumer-property group.protocol=consumer --timeout-ms 40000 >/dev/null &
described() { # PATTERN ARGUMENTS…: asks until there is such a line
  local out
  for _ in $(seq 15); do
    out=$(groups --describe --group "$t-new" "${@:2}")
    grep -q -e "$1" <<<"$out" && break
  done
  echo "$out"
}
check "consumer group members" "uniform\|$t" described "console-consumer.*$t" --members --verbose
check "consumer group state" 'uniform *Stable' described 'Stable' --state --verbose
check "consumer groups list, type" "$t-new *Consumer" groups --list --type consumer
check "consumer groups list, state" "$t-new *Stable" groups --list --state stable
check "consumer group offsets" "$t-new .*$t" described "$t-new .*$t" --offsets
check "consumer group delete, refused" 'not empty' groups --delete --group "$t-new"
wait $!
check "consumer group delete" 'successful' groups --delete --group "$t-new"
check "configs alter" 'Completed' configs --alter --entity-type topics --entity-name "$t" --add-config max.message.bytes=5000
check "configs describe" 'max.message.bytes=5000.*DYNAMIC_TOPIC_CONFIG' configs --describe --entity-type topics --entity-name "$t"
check "configs describe all" 'cleanup.policy=delete' configs --describe --all --entity-type topics --entity-name "$t"
check "configs describe broker" 'num.partitions' configs --describe --all --entity-type brokers --entity-name 1
one="--entity-type brokers --entity-name 1"
check "configs of the broker" 'Completed' configs --alter $one --add-config log.retention.ms=7777777
check "configs of all brokers" 'Completed' configs --alter --entity-type brokers --entity-default --add-config log.retention.ms=8888888,background.threads=11
check "configs of the broker, described" 'DYNAMIC_BROKER_CONFIG:log.retention.ms=7777777, DYNAMIC_DEFAULT_BROKER_CONFIG:log.retention.ms=8888888' configs --describe $one
check "configs of all brokers, described" 'log.retention.ms=8888888 sensitive=false synonyms={DYNAMIC_DEFAULT_BROKER_CONFIG:log.retention.ms=8888888}' configs --describe --entity-type brokers --entity-default
check "configs of a topic by its broker" 'retention.ms=1000000.*DYNAMIC_BROKER_CONFIG:log.retention.ms=7777777' configs --describe --all --entity-type topics --entity-name "$t"
check "configs that need a restart" 'Cannot update these configs dynamically' configs --alter $one --add-config num.partitions=9
check "configs that are one broker's" 'broker id must be specified' configs --alter --entity-type brokers --entity-default --add-config sasl.kerberos.min.time.before.relogin=58000
check "configs of the broker, deleted" 'Completed' configs --alter $one --delete-config log.retention.ms
check "configs of all brokers, deleted" 'Completed' configs --alter --entity-type brokers --entity-default --delete-config log.retention.ms,background.threads
check "configs of a group" 'Completed' configs --alter --entity-type groups --entity-name "$t-g" --add-config consumer.session.timeout.ms=50000
check "configs of a group, described" 'consumer.session.timeout.ms=50000 .*DYNAMIC_GROUP_CONFIG' configs --describe --entity-type groups --entity-name "$t-g"
check "configs of a group, out of bounds" 'group.consumer.min.session.timeout.ms' configs --alter --entity-type groups --entity-name "$t-g" --add-config consumer.session.timeout.ms=1
check "configs of a group, deleted" 'Completed' configs --alter --entity-type groups --entity-name "$t-g" --delete-config consumer.session.timeout.ms
check "configs delete" 'Completed' configs --alter --entity-type topics --entity-name "$t" --delete-config max.message.bytes
check "get offsets" "$t:0:" kafka org.apache.kafka.tools.GetOffsetShell --bootstrap-server "$b" --topic "$t"
check "get offsets, earliest" "$t:0:0" kafka org.apache.kafka.tools.GetOffsetShell --bootstrap-server "$b" --topic "$t" --time earliest
check "api versions" 'Fetch(1): 4 to 18' kafka org.apache.kafka.tools.BrokerApiVersionsCommand --bootstrap-server "$b"
check "log dirs" "$t-0" kafka org.apache.kafka.tools.LogDirsCommand --bootstrap-server "$b" --describe
check "cluster id" 'Cluster ID' kafka org.apache.kafka.tools.ClusterTool cluster-id --bootstrap-server "$b"
check "quorum" 'LeaderId' kafka org.apache.kafka.tools.MetadataQuorumCommand --bootstrap-server "$b" describe --status
check "features" 'metadata.version' kafka org.apache.kafka.tools.FeatureCommand --bootstrap-server "$b" describe
printf '{"partitions":[{"topic":"%s","partition":0,"offset":-1}],"version":1}' "$t" >"/tmp/$t.json"
check "delete records" 'low_watermark: [0-9]' kafka org.apache.kafka.tools.DeleteRecordsCommand --bootstrap-server "$b" --offset-json-file "/tmp/$t.json"
reassign() { kafka org.apache.kafka.tools.reassign.ReassignPartitionsCommand --bootstrap-server "$b" --reassignment-json-file "/tmp/$t.json" "$@"; }
printf '{"version":1,"partitions":[{"topic":"%s","partition":0,"replicas":[1]}]}' "$t" >"/tmp/$t.json"
check "reassign partitions" "Successfully started partition reassignment for $t-0" reassign --execute
check "reassign partitions, done" "Reassignment of partition $t-0 is completed" reassign --verify
printf '{"version":1,"partitions":[{"topic":"%s","partition":0,"replicas":[7]}]}' "$t" >"/tmp/$t.json"
check "reassign partitions, nobody there" 'Unknown broker id 7' reassign --execute
rm -f "/tmp/$t.json"
check "producer perf" '1000 records sent' kafka org.apache.kafka.tools.ProducerPerformance --topic "$t" --num-records 1000 --record-size 100 --throughput -1 --producer-props bootstrap.servers="$b"
check "consumer perf" ', 1000,' kafka org.apache.kafka.tools.ConsumerPerformance --bootstrap-server "$b" --topic "$t" --messages 1000
check "transactional producer perf" '1000 records sent' kafka org.apache.kafka.tools.ProducerPerformance --topic "$t" --num-records 1000 \
  --record-size 100 --throughput -1 --transactional-id "$t-tx" --transaction-duration-ms 50 --producer-props bootstrap.servers="$b"
check "transactions list" "$t-tx.*Complete" transactions list
check "transactions list, by pattern" "$t-tx" transactions list --transactional-id-pattern "$t.*"
check "transactions list, by duration" '^none$' eval "transactions list --duration-filter 100000000 | grep $t-tx || echo none"
check "transactions describe" "$t-tx.*CompleteCommit" transactions describe --transactional-id "$t-tx"
check "transactions terminate" 'Empty' eval "transactions forceTerminateTransaction --transactionalId $t-tx; transactions describe --transactional-id $t-tx"
check "transactions describe producers" 'ProducerId.*CurrentTransactionStartOffset' transactions describe-producers --topic "$t" --partition 0
check "transactions find hanging" '^TransactionalId\|^Topic' transactions find-hanging --broker-id 1
check "transactions abort, none open" 'Could not find any open transaction' transactions abort --topic "$t" --partition 0 --start-offset 0
check "features, transactions" 'transaction.version.*FinalizedVersionLevel: 2' kafka org.apache.kafka.tools.FeatureCommand --bootstrap-server "$b" describe
check "acls add" 'operation=WRITE, permissionType=ALLOW' acls --add --allow-principal User:kim --producer --topic "$t-acl" --resource-pattern-type prefixed
check "acls list" "name=$t-acl, patternType=PREFIXED" acls --list --topic "$t-acl-1" --resource-pattern-type match
check "acls remove" '^gone$' eval "acls --remove --force --topic $t-acl --resource-pattern-type prefixed; acls --list --topic $t-acl | grep -q User:kim || echo gone"
check "quotas alter" 'Completed' configs --alter --add-config 'producer_byte_rate=1024,request_percentage=50' --entity-type users --entity-name "$t-u"
check "quotas describe" 'producer_byte_rate=1024.0' configs --describe --entity-type users --entity-name "$t-u"
check "quotas delete" 'Completed' configs --alter --delete-config producer_byte_rate,request_percentage --entity-type users --entity-name "$t-u"
check "topics delete" '^gone$' eval "topics --delete --topic $t; topics --list | grep -q ^$t\$ || echo gone"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
