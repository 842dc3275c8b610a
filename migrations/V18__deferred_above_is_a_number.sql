-- dsync.deferred_above is read while a directory ends. A value that is no number failed there, as if the event were to blame: it
-- went to the dead letters, and access stayed. What is no number counts as unset now.
create or replace function dsync.entering(directories text[], people text[], out erased text[], out has_backlog boolean)
language plpgsql volatile as $$
begin
    -- Settings of the connection would get lost in a pooler between. What goes along with a large group, or comes back with a
    -- directory, has its history at once: that takes longer than other statements may.
    perform
        set_config('search_path', 'dsync, pg_temp', true), set_config('statement_timeout', '15min', true),
        set_config('dsync.may_defer', 'on', true);
    if current_setting('dsync.deferred_above', true) !~ '^[0-9]{1,18}$' then
        perform set_config('dsync.deferred_above', '', true);
    end if;
    perform dsync.lock_directories(entering.directories);
    erased := array(select e.user_id from dsync.erased as e where e.user_id = any(entering.people));
    -- Before the lock that history takes with the first change: a directory that comes back has its backlog written after.
    perform from dsync.history_backlog as b where b.directory_id = any(entering.directories)
    order by b.directory_id for update;
    has_backlog := exists (select from dsync.history_backlog);
end
$$;
