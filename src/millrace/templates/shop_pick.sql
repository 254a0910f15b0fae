-- A number below a bound from a row's number and a salt; in the session only.
create or replace function pg_temp.pick(i bigint, salt bigint, below bigint) returns bigint language sql immutable as
  $$ select (hashint8extended(i, salt) & 9223372036854775807) % below $$;
