import { describe, expect, it } from 'vitest';
import {
  faults,
  median,
  Progress,
  type Round,
  renderJson,
  renderStory,
  type Summary,
} from '../../core/host/demo/report.js';

const ROUND: Round = {
  number: 1,
  killed: 'a',
  promoted: 'b',
  open: 4,
  committing: 2,
  replays: 5,
  serverMs: 140.2,
  promotedInMs: 120,
  pauses: [10, 30.25, 20],
  silent: 0,
};

const GOOD: Summary = {
  rounds: [ROUND, { ...ROUND, number: 2, pauses: [40.04] }],
  clients: 8,
  seconds: 5,
  transactions: 100,
  replays: 10,
  outcomeCommitted: 3,
  outcomeAborted: 1,
  errors: [],
  wrongReads: [],
  verdict: {
    duplicates: [],
    lost: [],
    altered: [],
    uninvited: [],
    misgiven: [],
    misplaced: [],
    wrongBalances: [],
    sumRight: true,
    right: true,
  },
  messages: [],
  interrupted: true,
  ok: true,
};

describe('the report of the demo', () => {
  it('is one line of JSON with the promised keys', () => {
    const text = renderJson(GOOD);
    expect(text.split('\n')).toHaveLength(2);
    expect(JSON.parse(text)).toEqual({
      rounds: 2,
      clients: 8,
      transactions: 100,
      replays: 10,
      outcomeCommitted: 3,
      outcomeAborted: 1,
      clientErrors: 0,
      duplicates: 0,
      lost: 0,
      pauseMsMax: 40,
      pauseMsMedian: 25.1,
      ok: true,
    });
  });

  it('says null for pauses when there were none', () => {
    expect(JSON.parse(renderJson({ ...GOOD, rounds: [] }))).toMatchObject({ pauseMsMax: null, pauseMsMedian: null });
  });

  it('ends well in a table', () => {
    const text = renderStory(GOOD);
    expect(text).toMatch(/Replays\s+│\s+10 /);
    expect(text).toMatch(/Pause beyond that, longest\s+│\s+40 ms/);
    expect(text).toMatch(/that clients were given\s+│\s+as stored /);
    expect(text).toContain('no client saw an error');
    expect(text).not.toMatch(/FAILED|WRONG/);
  });

  it('names what is wrong', () => {
    const bad: Summary = {
      ...GOOD,
      rounds: [
        { ...ROUND, open: 0 },
        { ...ROUND, number: 2, replays: 0, silent: 2 },
      ],
      errors: [{ client: 3, code: '08007', message: 'who knows', during: 'commit', reference: '3-1', at: 0 }],
      wrongReads: [{ client: 4, what: 'balance', expected: 1, seen: 2 }],
      verdict: {
        duplicates: ['1-1', '1-2', '1-3', '1-4', '1-5', '1-6'],
        lost: ['2-1'],
        altered: ['2-2'],
        uninvited: ['2-3'],
        misgiven: ['2-4'],
        misplaced: ['17'],
        wrongBalances: [9],
        sumRight: false,
        right: false,
      },
      messages: ['the gateway warned'],
      ok: false,
    };
    expect(faults(bad)).toEqual([
      'applied more than once: 1-1; 1-2; 1-3; 1-4; 1-5 and 1 more',
      'acknowledged but missing: 2-1',
      'not as the client wrote it: 2-2',
      'applied although the client was told otherwise: 2-3',
      'stored with other values than the client was given: 2-4',
      'legs that are missing or belong to the wrong entry: 17',
      'accounts with a wrong balance: 9',
      'the sum of all balances changed',
      'errors that clients saw: client 3, commit: 08007 who knows',
      'reads that were not right: client 4, balance: 2 instead of 1',
      'round 1: no transaction was open when the primary was killed',
      'round 2: 2 clients did not go on',
      'round 2: nothing was repeated',
    ]);
    const text = renderStory(bad);
    expect(text).toContain('FAILED');
    expect(text).toMatch(/that clients were given\s+│\s+WRONG /);
    expect(text).toContain('the gateway warned');
    expect(text).not.toContain('no client saw an error');
    expect(JSON.parse(renderJson(bad))).toMatchObject({ clientErrors: 1, duplicates: 6, lost: 1, ok: false });
  });

  it('knows the middle', () => {
    expect([median([]), median([5]), median([9, 1, 5]), median([4, 1, 3, 2])]).toEqual([null, 5, 5, 2.5]);
  });
});

describe('progress', () => {
  it('writes one line over and over on a terminal, and wipes it before one that stays', () => {
    const texts: string[] = [];
    const progress = new Progress(
      (text) => texts.push(text),
      true,
      () => 10,
    );
    progress.show('a text that is too long');
    progress.line('stays');
    progress.clear();
    expect(texts).toEqual(['\r\x1b[2Ka text th', '\r\x1b[2K', 'stays\n']);
  });

  it('writes only lines elsewhere, one per round', () => {
    const texts: string[] = [];
    const progress = new Progress((text) => texts.push(text), false);
    progress.show('passing');
    progress.round(ROUND);
    progress.round({ ...ROUND, number: 2, silent: 3, pauses: [] });
    progress.clear();
    expect(texts).toHaveLength(2);
    expect(texts[0]).toMatch(
      /^round 1: a killed with 4 open transactions .* b took writes after 140 ms; all clients went on, at most 30 ms later \(median 20 ms\); 5 replays\n$/,
    );
    expect(texts[1]).toContain('3 CLIENTS DID NOT GO ON');
  });
});
