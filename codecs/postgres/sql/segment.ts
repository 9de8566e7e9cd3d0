import type { StatementFacts } from './facts.js';
import type { QueryFacts, Statement } from './query.js';

/**
 * How a simple Query with several statements is treated (manual: "Message Flow", "Multiple Statements in a Simple
 * Query"). What is relied on:
 *
 * - Statements of one Query outside of a transaction block run in one implicit transaction, which commits at the end of
 *   the Query or at a COMMIT in it, and which a failure rolls back; the rest of the text is then skipped.
 * - BEGIN makes the implicit transaction, with all that ran in it, a regular block, which the end of the text leaves open.
 * - COMMIT and ROLLBACK end an implicit transaction too (with a warning); with AND CHAIN they fail there.
 * - The implicit transaction counts as a transaction block: what is refused in a block is refused there, LOCK and DECLARE
 *   are not, and CALL and DO cannot commit inside. SAVEPOINT and its kin are refused all the same.
 *
 * Cutting a text changes one thing that cannot be helped: a syntax error in a later segment is found after the earlier ones
 * have run, where the server would have refused the text as a whole. A statement that does not even begin with a known
 * word makes the text opaque for that reason.
 */
export interface Segmentation {
  /**
   * single: at most one statement. implicit: one implicit transaction, no control in it; sent as it is, or wrapped whole in
   * BEGIN..COMMIT. split: send each segment as a Query of its own (segmentText), stop at the first error; with one segment
   * the text may be sent as it is. opaque: send as it is; what it commits and when is not known.
   */
  readonly mode: 'single' | 'implicit' | 'split' | 'opaque';
  /** Why a text is opaque, for the log. */
  readonly reason?: string;
  /** Together they cover all statements, in order; one for single and opaque texts. */
  readonly segments: readonly Segment[];
}

export interface Segment {
  /** Bytes of the text, from its beginning. The first begins at 0. */
  readonly start: number;
  readonly end: number;
  /** Statements [first, first + count) of the text. */
  readonly first: number;
  readonly count: number;
  /**
   * implicit: begins outside of a block, and commits at its end as any Query does. block: inside of a transaction block
   * that it may open or roll back; nothing in it commits. commit: COMMIT or PREPARE TRANSACTION, alone.
   */
  readonly kind: 'implicit' | 'block' | 'commit';
}

/** Needs a transaction block around it, of which the implicit one is enough. */
function needsBlock(facts: StatementFacts): boolean {
  return facts.verb === 'LOCK' || facts.local || facts.declareCursor?.hold === false;
}

/**
 * Decides how the text of a simple Query is treated.
 *
 * In: the text's facts, and the transaction status (that of the last ReadyForQuery: I, T or E) in which it will be run.
 */
export function segment(query: QueryFacts, status: 'I' | 'T' | 'E'): Segmentation {
  const { statements, length } = query;
  const whole = (kind: Segment['kind']): Segment[] => [
    { start: 0, end: length, first: 0, count: statements.length, kind },
  ];
  const opaque = (reason: string): Segmentation => ({ mode: 'opaque', reason, segments: whole('implicit') });
  if (statements.length <= 1) {
    const effect = statements[0]?.facts.effect;
    const ends = effect === 'commit' || effect === 'prepareTransaction';
    const inBlock = status !== 'I' || effect === 'begin' || effect === 'rollback';
    return { mode: 'single', segments: whole(ends ? 'commit' : inBlock ? 'block' : 'implicit') };
  }

  const segments: Segment[] = [];
  let block = status !== 'I';
  let first = 0;
  let kind: Segment['kind'] = block ? 'block' : 'implicit';
  const cut = (next: number): void => {
    if (next > first) segments.push(range(statements, first, next, kind));
    first = next;
    kind = block ? 'block' : 'implicit';
  };
  for (let i = 0; i < statements.length; i++) {
    const { facts } = statements[i];
    switch (facts.effect) {
      case 'begin':
        // Work before it in the same implicit transaction becomes part of the block, so it stays in its segment.
        block = true;
        kind = 'block';
        break;
      case 'commit':
      case 'prepareTransaction':
        if (!block && facts.effect === 'prepareTransaction') return opaque('PREPARE TRANSACTION without BEGIN');
        if (!block && facts.chain) return opaque('COMMIT AND CHAIN without BEGIN');
        cut(i);
        block = facts.chain;
        kind = 'commit';
        cut(i + 1);
        break;
      case 'rollback':
        if (!block && facts.chain) return opaque('ROLLBACK AND CHAIN without BEGIN');
        block = facts.chain;
        kind = 'block';
        cut(i + 1);
        break;
      case 'savepoint':
        // Refused by the server, yet accepted inside of BEGIN..COMMIT around the text.
        if (!block) return opaque(facts.verb + ' without BEGIN');
        break;
      case 'commitPrepared':
      case 'rollbackPrepared':
        return opaque(facts.verb + ' among other statements');
      case 'opaque':
        if (facts.verb !== 'CALL' && facts.verb !== 'DO') return opaque('a statement that is not understood');
        break;
      default:
        break;
    }
  }
  cut(statements.length);

  for (const part of segments) {
    if (part.kind !== 'implicit' || part.count > 1) continue;
    // Alone in a Query it would not be in a block any more, as it was in the text.
    const { facts } = statements[part.first];
    if (!facts.transactional || needsBlock(facts))
      return opaque(facts.verb + ' would run outside of the block it is in');
  }
  segments[0] = { ...segments[0], start: 0 };
  if (segments.length === 1 && segments[0].kind === 'implicit')
    return { mode: 'implicit', segments: whole('implicit') };
  return { mode: 'split', segments };
}

function range(statements: readonly Statement[], first: number, next: number, kind: Segment['kind']): Segment {
  return { start: statements[first].start, end: statements[next - 1].end, first, count: next - first, kind };
}

/**
 * The text of a segment as a Query of its own: what comes before it replaced by one space a character, so that the
 * position in an error message is that of the whole text. The closing zero byte is the caller's.
 *
 * In: the whole text as bytes[start, ...), the segment, and the client encoding (UTF8 when absent).
 */
export function segmentText(bytes: Uint8Array, start: number, part: Segment, encoding = 'UTF8'): Uint8Array {
  const blanks = characters(bytes, start, start + part.start, encoding);
  const text = new Uint8Array(blanks + part.end - part.start);
  text.fill(0x20, 0, blanks);
  text.set(bytes.subarray(start + part.start, start + part.end), blanks);
  return text;
}

/** Characters in bytes[start, end), by the lead bytes of the encodings that PostgreSQL allows for a server. */
function characters(bytes: Uint8Array, start: number, end: number, encoding: string): number {
  let count = 0;
  if (encoding === 'UTF8') {
    for (let i = start; i < end; i++) if ((bytes[i] & 0xc0) !== 0x80) count++;
    return count;
  }
  if (!encoding.startsWith('EUC_') && encoding !== 'MULE_INTERNAL') return end - start;
  for (let i = start; i < end; count++) i += width(bytes[i], encoding);
  return count;
}

function width(lead: number, encoding: string): number {
  if (lead < 0x80) return 1;
  if (encoding === 'MULE_INTERNAL') {
    if (lead >= 0x81 && lead <= 0x8d) return 2;
    if (lead >= 0x90 && lead <= 0x9b) return 3;
    return lead === 0x9c || lead === 0x9d ? 4 : 1;
  }
  if (encoding === 'EUC_CN') return 2;
  if (lead === 0x8e) return encoding === 'EUC_TW' ? 4 : 2;
  return lead === 0x8f ? 3 : 2;
}
