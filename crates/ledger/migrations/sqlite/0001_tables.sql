-- Column names are chosen so that no database (SQLite, PostgreSQL, MySQL) needs them quoted.
-- The check of a status is spelled with OR because SQLite builds a table for an IN of three, for every row.
-- Times are milliseconds since the Unix epoch, by the log's clock.

CREATE TABLE campaigns (
    campaign_id    TEXT    NOT NULL PRIMARY KEY,
    title          TEXT    NOT NULL,
    stock          INTEGER NOT NULL,
    state          TEXT    NOT NULL CHECK (state IN ('active', 'paused', 'closed')),
    opens_at       INTEGER NOT NULL,
    closes_at      INTEGER,            -- NULL: never
    log_partition  INTEGER NOT NULL,
    created_offset INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- How many coupon rows a campaign has in each status; kept by the same transactions as the rows.
CREATE TABLE campaign_counts (
    campaign_id TEXT    NOT NULL PRIMARY KEY,
    issued      INTEGER NOT NULL,
    redeemed    INTEGER NOT NULL,
    cancelled   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE coupons (
    campaign_id   TEXT    NOT NULL,
    rank_no       INTEGER NOT NULL,
    user_id       TEXT    NOT NULL,
    code          TEXT,                -- NULL: an imported code that has not come yet
    status        TEXT    NOT NULL CHECK (status = 'issued' OR status = 'redeemed' OR status = 'cancelled'),
    log_partition INTEGER NOT NULL,
    log_offset    INTEGER NOT NULL,    -- of the claim
    claimed_at    INTEGER NOT NULL,
    redeemed_by   TEXT,
    redeemed_at   INTEGER,
    PRIMARY KEY (campaign_id, rank_no)
) STRICT, WITHOUT ROWID;

-- One claim wins at most one coupon. Also the auditor's way from a window to its rows.
CREATE UNIQUE INDEX coupons_by_claim ON coupons (log_partition, log_offset);

-- Debezium's outbox shape. The id sorts as text in the order of the log, within a partition.
CREATE TABLE outbox (
    id            TEXT NOT NULL PRIMARY KEY,
    aggregatetype TEXT NOT NULL,
    aggregateid   TEXT NOT NULL,
    type          TEXT NOT NULL,
    payload       TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE windows (
    log_partition INTEGER NOT NULL,
    from_offset   INTEGER NOT NULL,
    to_offset     INTEGER NOT NULL,
    coupons       INTEGER NOT NULL,
    hash          INTEGER NOT NULL,    -- a wrapping sum of 64-bit hashes, as a signed number
    PRIMARY KEY (log_partition, from_offset)
) STRICT, WITHOUT ROWID;

CREATE TABLE progress (
    log_partition INTEGER NOT NULL PRIMARY KEY,
    epoch         INTEGER NOT NULL,
    next_offset   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
