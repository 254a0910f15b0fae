-- The shop's source tables. Every value comes from a hash of its row's number and the seed: same seed, same data.
create table customers (
  customer_id bigint primary key,
  customer_name text not null,
  customer_segment text,
  region text,
  updated_at timestamptz not null
);
create table products (
  product_id bigint primary key,
  product_name text not null,
  category text not null,
  unit_cost numeric(12,2) not null,
  updated_at timestamptz not null
);
create table orders (
  order_id bigint primary key,
  customer_id bigint not null,
  product_id bigint not null,
  order_date date not null,
  amount numeric(12,2) not null,
  quantity integer not null,
  status text not null,
  updated_at timestamptz not null
);
