/** What every account holds at the beginning. */
export const OPENING_BALANCE = 1000;

/** One movement of money, as a row of the ledger. Source and target are null in an entry that moves nothing. */
export interface Entry {
  /** Made by the client, never used twice. */
  readonly id: string;
  readonly client: number;
  readonly source: number | null;
  readonly target: number | null;
  readonly amount: number;
}

/**
 * What the client was told: `acknowledged` it took effect; `refused` it did not (an error, a rollback); `doubtful` nobody
 * could say (SQLSTATE 08007, or a connection that broke at the commit).
 */
export type Answer = 'acknowledged' | 'refused' | 'doubtful';

/** A transaction of a client, and what the client knows of it. */
export interface Claim extends Entry {
  readonly answer: Answer;
}

/** What the database holds. */
export interface LedgerFacts {
  readonly entries: readonly Entry[];
  readonly accounts: readonly { readonly id: number; readonly balance: number }[];
}

/** How the database compares with what the clients were told. Ids, so that a report can name them. */
export interface LedgerVerdict {
  /** Transactions that took effect more than once. */
  readonly duplicates: readonly string[];
  /** Acknowledged, and not there. */
  readonly lost: readonly string[];
  /** There with other accounts or another amount than the client wrote. */
  readonly altered: readonly string[];
  /** There although the client was told that it failed, or never committed it. */
  readonly uninvited: readonly string[];
  /** Accounts whose balance is not what their ledger rows add up to. */
  readonly wrongBalances: readonly number[];
  /** Whether money was neither made nor destroyed. */
  readonly sumRight: boolean;
  /** All of it is as it should be. */
  readonly right: boolean;
}

/** Runs one statement on the database under test. */
export type Query = (sql: string) => Promise<{ rows: Record<string, unknown>[] }>;

/**
 * Makes the tables: accounts 0 to `accounts - 1`, each with {@link OPENING_BALANCE}. The ledger has no unique key on
 * purpose: a transaction that is applied twice must show up as a second row, not be hidden by an error.
 */
export async function createLedger(query: Query, accounts: number): Promise<void> {
  await query(`
    DROP TABLE IF EXISTS accounts, ledger;
    CREATE TABLE accounts (id int PRIMARY KEY, balance int NOT NULL) WITH (fillfactor = 50);
    CREATE TABLE ledger (id text NOT NULL, client int NOT NULL, source int, target int, amount int NOT NULL);
    CREATE INDEX ON ledger (client);
    INSERT INTO accounts SELECT g, ${OPENING_BALANCE} FROM generate_series(0, ${accounts - 1}) AS g`);
}

/** Reads what the check needs. */
export async function readLedger(query: Query): Promise<LedgerFacts> {
  const entries = await query('SELECT id, client, source, target, amount FROM ledger');
  const accounts = await query('SELECT id, balance FROM accounts');
  return {
    entries: entries.rows as unknown as Entry[],
    accounts: accounts.rows as unknown as LedgerFacts['accounts'],
  };
}

/**
 * Compares the database with what the clients were told: every acknowledged transaction exactly once, no refused one, a
 * doubtful one at most once, nothing that nobody wrote, and every balance the sum of its movements.
 *
 * @param claims every transaction that any client began with an id
 * @param accounts how many accounts there were at the beginning
 */
export function checkLedger(facts: LedgerFacts, claims: Iterable<Claim>, accounts: number): LedgerVerdict {
  const byId = new Map<string, Entry[]>();
  const sums = new Map<number, number>();
  const move = (account: number | null, amount: number) => {
    if (account !== null) sums.set(account, (sums.get(account) ?? 0) + amount);
  };
  for (const entry of facts.entries) {
    const same = byId.get(entry.id);
    if (same) same.push(entry);
    else byId.set(entry.id, [entry]);
    move(entry.source, -entry.amount);
    move(entry.target, entry.amount);
  }

  const lost: string[] = [];
  const altered: string[] = [];
  const uninvited: string[] = [];
  const duplicates = [...byId].filter(([, entries]) => entries.length > 1).map(([id]) => id);
  const claimed = new Set<string>();
  for (const claim of claims) {
    claimed.add(claim.id);
    const entries = byId.get(claim.id);
    if (entries === undefined) {
      if (claim.answer === 'acknowledged') lost.push(claim.id);
      continue;
    }
    if (claim.answer === 'refused') uninvited.push(claim.id);
    if (entries.some((entry) => !same(entry, claim))) altered.push(claim.id);
  }
  for (const id of byId.keys()) if (!claimed.has(id)) uninvited.push(id);

  const balances = new Map(facts.accounts.map(({ id, balance }) => [id, balance]));
  const wrongBalances: number[] = [];
  for (let id = 0; id < accounts; id++) {
    if (balances.get(id) !== OPENING_BALANCE + (sums.get(id) ?? 0)) wrongBalances.push(id);
  }
  for (const id of balances.keys()) if (!(id >= 0 && id < accounts)) wrongBalances.push(id);
  const sum = facts.accounts.reduce((total, { balance }) => total + balance, 0);
  const sumRight = sum === accounts * OPENING_BALANCE;
  const faults = [duplicates, lost, altered, uninvited, wrongBalances];
  const right = sumRight && faults.every((list) => list.length === 0);
  return { duplicates, lost, altered, uninvited, wrongBalances, sumRight, right };
}

function same(a: Entry, b: Entry): boolean {
  return a.client === b.client && a.source === b.source && a.target === b.target && a.amount === b.amount;
}
