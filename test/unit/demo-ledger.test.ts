import { describe, expect, it } from 'vitest';
import {
  type Claim,
  checkLedger,
  type Given,
  type LedgerFacts,
  OPENING_BALANCE,
  sidesOf,
} from '../../core/host/demo/ledger.js';

type Stored = LedgerFacts['entries'][number];

const ACCOUNTS = 3;

const given = (id: string): Given => ({ id, at: `2026-01-01 00:00:00.00000${id}+00`, token: `token ${id}` });

const entry = (
  id: string,
  reference: string,
  source: number | null,
  target: number | null,
  amount: number,
): Stored => ({ ...given(id), reference, client: 0, source, target, amount });

const ENTRIES = [entry('1', 'a', 0, 1, 10), entry('2', 'b', 1, 2, 5), entry('3', 'c', null, null, 0)];

const legsOf = (of: Stored) => sidesOf(of).map((side, index) => ({ ...side, id: `${of.id}${index}` }));

const claim = ({ id, at, token, ...of }: Stored, answer: Claim['answer'] = 'acknowledged'): Claim => ({
  ...of,
  answer,
  given: { id, at, token },
  legs: legsOf({ id, at, token, ...of }),
});

/** What a database that applied exactly these entries would hold. */
function facts(entries: readonly Stored[]): LedgerFacts {
  const balances = new Array<number>(ACCOUNTS).fill(OPENING_BALANCE);
  for (const { source, target, amount } of entries) {
    if (source !== null) balances[source] -= amount;
    if (target !== null) balances[target] += amount;
  }
  return {
    entries,
    // The second of two equal entries has no legs of its own: their ids are unique.
    legs: [...new Set(entries)].flatMap((each) => legsOf(each).map((leg) => ({ ...leg, entry: each.id }))),
    accounts: balances.map((balance, id) => ({ id, balance })),
  };
}

const check = (held: LedgerFacts, claims: readonly Claim[]) => checkLedger(held, claims, ACCOUNTS);
const right = {
  duplicates: [],
  lost: [],
  altered: [],
  uninvited: [],
  misgiven: [],
  misplaced: [],
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
    const { accounts, ...rest } = facts(ENTRIES);
    const held = {
      ...rest,
      accounts: accounts.map(({ id, balance }) => ({ id, balance: balance + (id === 2 ? 1 : 0) })),
    };
    expect(check(held, acknowledged)).toEqual({ ...right, wrongBalances: [2], sumRight: false, right: false });
  });

  it('finds money that went to the wrong account, though the sum is right', () => {
    const { accounts, ...rest } = facts(ENTRIES);
    const held = { ...rest, accounts: accounts.map(({ id, balance }) => ({ id, balance: balance + [0, 1, -1][id] })) };
    expect(check(held, acknowledged)).toEqual({ ...right, wrongBalances: [1, 2], right: false });
  });

  it('finds an account that is gone, and one that nobody made', () => {
    const { accounts, ...rest } = facts(ENTRIES);
    expect(check({ ...rest, accounts: accounts.slice(1) }, acknowledged)).toMatchObject({
      wrongBalances: [0],
      sumRight: false,
      right: false,
    });
    const more = { ...rest, accounts: [...accounts, { id: 7, balance: 0 }] };
    expect(check(more, acknowledged)).toEqual({ ...right, wrongBalances: [7], right: false });
  });

  it('finds a row that is not as the client wrote it', () => {
    const changed = [{ ...ENTRIES[0], amount: 11 }, ...ENTRIES.slice(1)];
    expect(check(facts(changed), acknowledged)).toEqual({
      ...right,
      altered: ['a'],
      misplaced: ['10', '11'],
      right: false,
    });
  });

  it.each([{ id: '7' }, { at: '2026-01-01 00:00:00.000002+00' }, { token: 'token 2' }])(
    'finds a row with another value than the client was given: %j',
    (other) => {
      const { entries, ...rest } = facts(ENTRIES);
      const held = { ...rest, entries: [{ ...entries[0], ...other }, ...entries.slice(1)] };
      // Its legs then belong to nobody.
      const misplaced = 'id' in other ? ['10', '11'] : [];
      expect(check(held, acknowledged)).toEqual({ ...right, misgiven: ['a'], misplaced, right: false });
    },
  );

  it('finds an id that two rows have', () => {
    const entries = [ENTRIES[0], { ...ENTRIES[1], id: '1' }];
    const claims = entries.map((each) => claim(each));
    expect(check({ ...facts(entries), legs: [] }, claims).misgiven).toEqual(['a', 'b']);
  });

  it('finds an acknowledged row of which the client was given nothing', () => {
    const claims = acknowledged.map((each) => ({ ...each, given: null, legs: [] }));
    expect(check(facts(ENTRIES), claims)).toEqual({ ...right, misgiven: ['a', 'b', 'c'], right: false });
    const doubtful = claims.map((each) => ({ ...each, answer: 'doubtful' as const }));
    expect(check(facts(ENTRIES), doubtful)).toEqual(right);
  });

  it('finds a leg that is missing, of another entry, of none, or one too many', () => {
    const { legs, ...rest } = facts(ENTRIES);
    const misplaced = (changed: LedgerFacts['legs']) => {
      const verdict = check({ ...rest, legs: changed }, acknowledged);
      expect(verdict).toEqual({ ...right, misplaced: verdict.misplaced, right: false });
      return verdict.misplaced;
    };
    expect(misplaced(legs.slice(1))).toEqual(['10']);
    expect(misplaced([{ ...legs[0], entry: '2' }, ...legs.slice(1)])).toEqual(['10']);
    expect(misplaced([{ ...legs[0], entry: '9' }, ...legs.slice(1)])).toEqual(['10']);
    expect(misplaced([{ ...legs[0], amount: 10 }, ...legs.slice(1)])).toEqual(['10']);
    expect(misplaced([{ ...legs[0], id: '99' }, ...legs.slice(1)])).toEqual(['10', '99']);
    expect(misplaced([...legs, { ...legs[0], id: '99' }])).toEqual(['99']);
    expect(misplaced([...legs, { ...legs[0], id: '99', entry: '9' }])).toEqual(['99']);
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
    expect(check({ entries: [], legs: [], accounts: [] }, acknowledged)).toEqual({
      ...right,
      lost: ['a', 'b', 'c'],
      wrongBalances: [0, 1, 2],
      sumRight: false,
      right: false,
    });
  });
});
