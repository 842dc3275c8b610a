-- What somebody is erased by must outlive the first attempt: its commit takes the row and blanks history, and if the broker
-- was away then, who runs the command again would have nothing left to recognise the person's records by.
alter table dsync.erased add column marks text[] not null default '{}';
comment on column dsync.erased.marks is
    'While an erasure is not finished: addresses and provider''s ids by which records are recognised that do not name the id. Personal data. Empty afterwards.';
