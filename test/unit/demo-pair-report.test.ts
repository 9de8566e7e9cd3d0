import { describe, expect, it } from 'vitest';
import {
  type Act,
  type PairSummary,
  pairFaults,
  renderPairJson,
  renderPairStory,
  tellAct,
} from '../../core/host/demo/pair-report.js';
import { Progress } from '../../core/host/demo/report.js';
import { DEMO_KEYS } from '../kit/demo.js';

const TAKEOVER = { gateway: 'b', kept: 8, reset: 0, ms: 60.4 };

const ACT: Act = {
  number: 1,
  what: 'the host of gateway a was cut off',
  open: 5,
  committing: 2,
  from: 'that',
  pauses: [3000, 3100.26],
  silent: 0,
  takeover: TAKEOVER,
};

const GOOD: PairSummary = {
  acts: [ACT, { ...ACT, number: 2, what: 'the primary was killed', pauses: [100], takeover: null }],
  takeovers: [TAKEOVER, { ...TAKEOVER, gateway: 'a', ms: 40 }],
  kept: 16,
  reset: 0,
  clients: 8,
  seconds: 20,
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
  ok: true,
};

describe('the report of the demo of the pair', () => {
  it('is the JSON of the other demo and four figures', () => {
    const text = renderPairJson(GOOD);
    expect(text.split('\n')).toHaveLength(2);
    const result = JSON.parse(text);
    expect(Object.keys(result)).toEqual([
      ...DEMO_KEYS,
      'connectionsKept',
      'connectionsReset',
      'takeoverMsP50',
      'takeoverMsMax',
    ]);
    expect(result).toMatchObject({
      rounds: 2,
      pauseMsMax: 3100.3,
      pauseMsMedian: 3000,
      connectionsKept: 16,
      connectionsReset: 0,
      takeoverMsP50: 50.2,
      takeoverMsMax: 60.4,
      ok: true,
    });
  });

  it('ends well in a table', () => {
    expect(pairFaults(GOOD)).toEqual([]);
    const text = renderPairStory(GOOD);
    expect(text).toMatch(/Connections taken over\s+│\s+16 /);
    expect(text).toMatch(/Open transactions interrupted\s+│\s+10 /);
    expect(text).toContain('over one and the same connection');
  });

  it('says what is wrong', () => {
    const acts: Act[] = [
      { ...ACT, silent: 1, takeover: { ...TAKEOVER, kept: 7, reset: 1 } },
      { ...ACT, number: 2, open: 0, takeover: null },
    ];
    const bad = { ...GOOD, acts, reset: 1, messages: ['a: it hurts'], ok: false };
    expect(pairFaults(bad)).toEqual([
      '1 connections were not kept',
      '1. the host of gateway a was cut off: 1 clients did not go on',
      '1. the host of gateway a was cut off: b went on with 7 of 8 connections',
      '2. the host of gateway a was cut off: no transaction was open then',
    ]);
    const text = renderPairStory(bad);
    expect(text).toContain('FAILED:\n  1 connections were not kept');
    expect(text).toContain('The gateway said:\n  a: it hurts');
  });

  it('tells each act in a line', () => {
    let text = '';
    const progress = new Progress((more) => (text += more), false);
    tellAct(progress, ACT);
    tellAct(progress, { ...ACT, number: 2, pauses: [], silent: 2, takeover: { ...TAKEOVER, reset: 3 } });
    expect(text.split('\n')).toEqual([
      '1. the host of gateway a was cut off with 5 open transactions and 2 commits on their way; b took over 8 connections in 60 ms; all clients went on at most 3100 ms after that (median 3050 ms)',
      '2. the host of gateway a was cut off with 5 open transactions and 2 commits on their way; b took over 8 connections in 60 ms and RESET 3; 2 CLIENTS DID NOT GO ON, the others did',
      '',
    ]);
  });
});
