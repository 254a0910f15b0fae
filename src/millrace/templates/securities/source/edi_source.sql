-- The source of this project: a stock master with Hangul names, and a feed of corporate actions in the form of EDI's 690
-- (114 columns; what a date, rate or field means, its …type or …name says). The same for the same day; made up.
-- It is run once, when the embedded server makes the database.
create function pg_temp.pick(i bigint, salt bigint, below bigint) returns bigint language sql immutable as
  $$ select (hashint8extended(i, salt) & 9223372036854775807) % below $$;

create table stock_master (
    stock_code varchar(6) not null, exchange varchar(4) not null, ticker varchar(12), name_ko varchar(60),
    name_en varchar(60), isin varchar(12), sector varchar(40), listed_date text, delisted_date text,
    is_active boolean not null, updated_at timestamptz not null, primary key (stock_code, exchange));

-- One in 10 is traded on a second exchange under the same ISIN; one in 25 was delisted.
insert into stock_master
select
  code, e.exchange, code || '.' || case e.exchange when 'XKOS' then 'KQ' when 'NXTE' then 'NX' else 'KS' end,
  (array['한빛', '대한', '동서', '미래', '서울', '부산', '신성', '가온'])[1 + pg_temp.pick(i, 1, 8)]
    || (array['전자', '화학', '건설', '금융', '제약', '통신', '철강', '식품'])[1 + pg_temp.pick(i, 2, 8)] || ' ' || i || '호',
  'Company ' || i,
  'KR7' || code || '00' || pg_temp.pick(i, 3, 10),
  (array['전기전자', '화학', '건설', '금융', '의약품', '통신', '철강', '음식료'])[1 + pg_temp.pick(i, 2, 8)],
  to_char(date '1990-01-01' + pg_temp.pick(i, 4, 12000)::int, 'YYYYMMDD'),
  case when i % 25 = 0 then to_char(current_date - 10, 'YYYYMMDD') end,
  i % 25 <> 0,
  current_date - make_interval(days => 1 + pg_temp.pick(i, 5, 300)::int)
from generate_series(1, 200) as i
cross join lateral (select lpad((i * 10)::text, 6, '0') as code) as c
cross join lateral unnest(
  case when i % 10 = 0 then array['XKRX', 'NXTE'] when i % 3 = 0 then array['XKOS'] else array['XKRX'] end
) as e (exchange);

create table edi_690 (
    eventcd varchar(10) not null, eventid integer not null, optionid integer not null, serialid integer not null,
    scexhid integer not null, sedolid integer not null, actflag char(1), changed text not null, created text,
    secid integer, issid integer, isin varchar(12), uscode varchar(9), issuername varchar(70),
    cntryofincorp varchar(2), sectycd varchar(3), securitydesc varchar(70), parvalue text, pvcurrency varchar(3),
    statusflag char(1), primaryexchgcd varchar(6), sedol varchar(7), sedolcurrency varchar(3), defunct char(1),
    sedolregcntry varchar(2), exchgcntry varchar(2), exchgcd varchar(6), mic varchar(6), micseg varchar(6),
    localcode varchar(50), liststatus char(1), issuedate text, date1type varchar(20), date1 text,
    date2type varchar(20), date2 text, date3type varchar(20), date3 text, date4type varchar(20), date4 text,
    date5type varchar(20), date5 text, date6type varchar(20), date6 text, date7type varchar(20), date7 text,
    date8type varchar(20), date8 text, date9type varchar(20), date9 text, date10type varchar(20), date10 text,
    date11type varchar(20), date11 text, date12type varchar(20), date12 text, paytype char(1), priority text,
    defaultopt char(1), outurnsecid integer, outurnisin varchar(12), ratioold text, rationew text, fractions char(1),
    currency varchar(3), rate1type varchar(20), rate1 text, rate2type varchar(20), rate2 text,
    field1name varchar(255), field1 varchar(255), field2name varchar(255), field2 varchar(255),
    field3name varchar(255), field3 varchar(255), field4name varchar(255), field4 varchar(255),
    field5name varchar(255), field5 varchar(255), field6name varchar(255), field6 varchar(255),
    field7name varchar(255), field7 varchar(255), field8name varchar(255), field8 varchar(255),
    field9name varchar(255), field9 varchar(255), field10name varchar(255), field10 varchar(255),
    field11name varchar(255), field11 varchar(255), field12name varchar(255), field12 varchar(255),
    field13name varchar(255), field13 varchar(255), field14name varchar(255), field14 varchar(255),
    field15name varchar(255), field15 varchar(255), field16name varchar(255), field16 varchar(255),
    field17name varchar(255), field17 varchar(255), field18name varchar(255), field18 varchar(255),
    field19name varchar(255), field19 varchar(255), field20name varchar(255), field20 varchar(255),
    field21name varchar(255), field21 varchar(255), field22name varchar(255), field22 varchar(255), uptodate text,
    primary key (eventcd, eventid, optionid, serialid, scexhid, sedolid));

-- One row for each event, option and listing. One in 40 is of a security that the master does not know; one in 30 was
-- withdrawn: its actflag says so, the row stays. priority is a number kept as text: 1.0. changed is a time kept as text.
insert into edi_690 (
  eventcd, eventid, optionid, serialid, scexhid, sedolid, actflag, changed, created, secid, issid, isin, issuername,
  cntryofincorp, sectycd, securitydesc, parvalue, pvcurrency, statusflag, primaryexchgcd, exchgcntry, exchgcd, mic, localcode,
  liststatus, date1type, date1, date2type, date2, date3type, date3, paytype, priority, defaultopt, ratioold, rationew,
  currency, rate1type, rate1, field1name, field1, uptodate)
select
  e.eventcd, 1000000 + i, o.optionid, 1, s.n::int, s.n::int + 5000,
  case when pg_temp.pick(i, 11, 30) = 0 then 'D' when pg_temp.pick(i, 12, 5) = 0 then 'U' else 'I' end,
  to_char(current_date - make_interval(days => 1 + pg_temp.pick(i, 13, 400)::int, secs => pg_temp.pick(i, 14, 86400)),
    'YYYY/MM/DD HH24:MI:SS'),
  to_char(e.day - 20, 'YYYYMMDD'), s.n::int, s.n::int, case when i % 40 = 0 then 'US' || lpad(i::text, 10, '0') else s.isin end,
  s.name_en, 'KR', 'EQS', 'Ordinary Shares', '5000.00000', 'KRW', 'A', s.exchange, 'KR', s.exchange, s.exchange, s.stock_code,
  'L', 'Exdate', to_char(e.day, 'YYYY/MM/DD'), 'Recdate', to_char(e.day + 1, 'YYYY/MM/DD'),
  case when e.eventcd = 'DIV' then 'Paydate' end, case when e.eventcd = 'DIV' then to_char(e.day + 30, 'YYYY/MM/DD') end,
  case when e.eventcd = 'DIV' then case o.optionid when 1 then 'C' else 'S' end end,
  o.optionid || '.0', case o.optionid when 1 then 'T' else 'F' end,
  case when e.eventcd in ('SD', 'BON') then '1.0000000' end,
  case when e.eventcd in ('SD', 'BON') then (2 + pg_temp.pick(i, 15, 9)) || '.0000000' end,
  case when e.eventcd = 'DIV' then 'KRW' end, case when e.eventcd = 'DIV' then 'GrossDividend' end,
  case when e.eventcd = 'DIV' then (50 * (1 + pg_temp.pick(i, 16, 60))) || '.00000' end,
  case when e.eventcd = 'DIV' then 'Frequency' end,
  case when e.eventcd = 'DIV' then (array['ANL', 'QTR', 'INT'])[1 + pg_temp.pick(i, 17, 3)] end,
  to_char(current_date - 1, 'YYYY/MM/DD')
from generate_series(1, 3000) as i
cross join lateral (
  select (array['DIV', 'DIV', 'DIV', 'SD', 'BON', 'AGM', 'ISCHG', 'RTS'])[1 + pg_temp.pick(i, 18, 8)] as eventcd,
    current_date - 1 - pg_temp.pick(i, 19, 700)::int as day
) as e
join (select row_number() over (order by stock_code, exchange) as n, * from stock_master) as s
  on s.n = 1 + pg_temp.pick(i, 20, (select count(*) from stock_master))
cross join lateral generate_series(1, case when e.eventcd = 'DIV' and i % 4 = 0 then 2 else 1 end) as o (optionid);
