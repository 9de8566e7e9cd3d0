import { describe, expect, it } from 'vitest';
import { type Claim, checkLedger, type Entry, type LedgerFacts, OPENING_BALANCE } from '../../core/host/demo/ledger.js';

const ACCOUNTS = 3;

const entry = (id: string, source: number | null, target: number | null, amount: number): Entry => ({
  id,
  client: 0,
  source,
  target,
  amount,
});

const ENTRIES = [entry('a', 0, 1, 10), entry('b', 1, 2, 5), entry('c', null, null, 0)];

const claim = (of: Entry, answer: Claim['answer'] = 'acknowledged'): Claim => ({ ...of, answer });

/** What a database that applied exactly these entries would hold. */
function facts(entries: readonly Entry[]): LedgerFacts {
  const balances = new Array<number>(ACCOUNTS).fill(OPENING_BALANCE);
  for (const { source, target, amount } of entries) {
    if (source !== null) balances[source] -= amount;
    if (target !== null) balances[target] += amount;
  }
  return { entries, accounts: balances.map((balance, id) => ({ id, balance })) };
}

const check = (held: LedgerFacts, claims: readonly Claim[]) => checkLedger(held, claims, ACCOUNTS);
const right = {
  duplicates: [],
  lost: [],
  altered: [],
  uninvited: [],
  wrongBalances: [],
  sumRight: true,
  right: true,
};
const acknowledged = ENTRIES.map((each) => claim(each));

describe('checkLedger', () => {
  it('finds nothing wrong where nothing is', () => {
    expect(check(facts(ENTRIES), acknowledged)).toEqual(right);
  });

  it('finds a transaction that was applied twice, money and all', () => {
    expect(check(facts([...ENTRIES, ENTRIES[0]]), acknowledged)).toEqual({ ...right, duplicates: ['a'], right: false });
  });

  it('finds a ledger row that was written twice while the money moved once', () => {
    const held = { ...facts(ENTRIES), entries: [...ENTRIES, ENTRIES[0]] };
    expect(check(held, acknowledged)).toEqual({ ...right, duplicates: ['a'], wrongBalances: [0, 1], right: false });
  });

  it('finds an acknowledged transaction that is missing', () => {
    expect(check(facts(ENTRIES.slice(1)), acknowledged)).toEqual({ ...right, lost: ['a'], right: false });
    expect(check(facts(ENTRIES.slice(0, 2)), acknowledged)).toEqual({ ...right, lost: ['c'], right: false });
  });

  it('finds a balance that is not the sum of its movements', () => {
    const { entries, accounts } = facts(ENTRIES);
    const held = {
      entries,
      accounts: accounts.map(({ id, balance }) => ({ id, balance: balance + (id === 2 ? 1 : 0) })),
    };
    expect(check(held, acknowledged)).toEqual({ ...right, wrongBalances: [2], sumRight: false, right: false });
  });

  it('finds money that went to the wrong account, though the sum is right', () => {
    const { entries, accounts } = facts(ENTRIES);
    const held = { entries, accounts: accounts.map(({ id, balance }) => ({ id, balance: balance + [0, 1, -1][id] })) };
    expect(check(held, acknowledged)).toEqual({ ...right, wrongBalances: [1, 2], right: false });
  });

  it('finds an account that is gone, and one that nobody made', () => {
    const { entries, accounts } = facts(ENTRIES);
    expect(check({ entries, accounts: accounts.slice(1) }, acknowledged)).toMatchObject({
      wrongBalances: [0],
      sumRight: false,
      right: false,
    });
    const more = { entries, accounts: [...accounts, { id: 7, balance: 0 }] };
    expect(check(more, acknowledged)).toEqual({ ...right, wrongBalances: [7], right: false });
  });

  it('finds a row that is not as the client wrote it', () => {
    const changed = [{ ...ENTRIES[0], amount: 11 }, ...ENTRIES.slice(1)];
    expect(check(facts(changed), acknowledged)).toEqual({ ...right, altered: ['a'], right: false });
  });

  it('finds a transaction that the client was told had failed, and one that nobody began', () => {
    const claims = [claim(ENTRIES[0], 'refused'), claim(ENTRIES[1])];
    expect(check(facts(ENTRIES), claims)).toEqual({ ...right, uninvited: ['a', 'c'], right: false });
  });

  it('lets a doubtful transaction be there or not, but not twice', () => {
    const claims = [claim(ENTRIES[0], 'doubtful'), ...acknowledged.slice(1)];
    expect(check(facts(ENTRIES), claims)).toEqual(right);
    expect(check(facts(ENTRIES.slice(1)), claims)).toEqual(right);
    expect(check(facts([...ENTRIES, ENTRIES[0]]), claims)).toMatchObject({ duplicates: ['a'], right: false });
  });

  it('finds nothing right in an empty database', () => {
    expect(check({ entries: [], accounts: [] }, acknowledged)).toEqual({
      ...right,
      lost: ['a', 'b', 'c'],
      wrongBalances: [0, 1, 2],
      sumRight: false,
      right: false,
    });
  });
});
