-- What the projector knows of the log: how far each lane has read it, what it could not apply, and when the log was
-- seen to have lost its end. (Schema dsync is there already: it holds the history of migrations.)

comment on schema dsync is 'dsync''s own tables. Applications read schema directory.';

create table dsync.progress (
    lane text primary key check (lane in ('all', 'removals')),
    stream text not null,
    stream_created timestamptz not null,
    seq bigint not null default 0 check (seq >= 0),
    seq_appended_at timestamptz,
    holder text,
    held_until timestamptz,
    advanced_at timestamptz not null default now()
);
comment on table dsync.progress is
    'Position of each lane in the log. Whoever applies a batch moves it with compare-and-set in the same transaction; the lease only saves others the work.';
comment on column dsync.progress.lane is 'all: every record. removals: only the subjects whose last word takes access away.';
comment on column dsync.progress.stream_created is 'When the stream was made, by the broker: a stream made anew is another log.';
comment on column dsync.progress.seq is 'The last sequence that is applied.';
comment on column dsync.progress.seq_appended_at is
    'When the broker stored that message: a log restored from an older copy has another message at that place, or none.';
comment on column dsync.progress.holder is 'The projector that advances this lane now.';
comment on column dsync.progress.held_until is 'When its lease ends unless renewed.';

create table dsync.rewinds (
    id bigint generated always as identity primary key,
    noticed_at timestamptz not null default now(),
    stream text not null,
    old_created timestamptz not null,
    old_seq bigint not null,
    new_created timestamptz not null,
    new_seq bigint not null
);
comment on table dsync.rewinds is
    'Each time the log was found shorter than what was applied. The lanes start over; directories not swept since are due.';

create table dsync.dead_letters (
    id bigint generated always as identity primary key,
    stream_created timestamptz not null,
    seq bigint not null,
    subject text not null,
    event_id text,
    event_type text not null,
    source text not null,
    received_at timestamptz not null,
    state text not null default 'dead' check (state in ('dead', 'dropped')),
    reason text not null,
    body bytea,
    attempts integer not null default 1,
    failed_at timestamptz not null default now(),
    unique (stream_created, seq)
);
comment on table dsync.dead_letters is
    'Records that could not be applied, and those that ingest could not address. A dropped one stays without its body, so that reading the log again does not raise it again.';
comment on column dsync.dead_letters.reason is 'What is wrong with it, without its content.';
comment on column dsync.dead_letters.body is 'The record''s body as it came: personal data.';
create index dead_letters_waiting on dsync.dead_letters (id) where state = 'dead';
