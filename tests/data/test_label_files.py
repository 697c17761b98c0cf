"""Lists and CSV files: what they name is read, every mistake is a sentence with its line."""

import pickle

import pytest
from label_lists import write_images

from glora_jax.data.label_files import LabelledPath, ListedSplit, read_csv, read_list


@pytest.mark.parametrize(
  'line, message',
  [
    ('images/a.png', r'line 2: .* does not hold a path and a whole number'),
    ('images/a.png three', 'line 2'),
    ('images/a.png 8', 'line 2: the label 8 is none of the 8 classes'),
    ('images/a.png -1', 'the label -1 is none'),
    ('images/0.png 1', 'line 2: images/0.png occurs a second time, first in line 1'),
    ('./images/0.png 1', 'occurs a second time, first in line 1 as images/0.png'),
    ('images/a.png --1', 'line 2: .* does not hold a path and a whole number'),
    ('images/a.png \N{SUPERSCRIPT TWO}', 'line 2: .* does not hold a path and a whole number'),
    ('images/a.png ' + '9' * 5000, 'line 2: .{,130} does not hold a path and a whole number'),
    ('images/none.png 1', '1 of 2 images .* are not there, .*none.png'),
  ],
)
def test_broken_lists_are_explained_with_the_line(tmp_path, line, message):
  write_images(tmp_path, ['images/0.png', 'images/a.png'])
  (tmp_path / 'list.txt').write_text(f'images/0.png 0\n{line}\n')
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    read_list(tmp_path / 'list.txt', tmp_path, 8)


def test_missing_and_empty_files_are_explained(tmp_path):
  (tmp_path / 'empty').write_text('\n\n')
  with pytest.raises(FileNotFoundError, match=r'There is no list .*list\.txt'):
    read_list(tmp_path / 'list.txt', tmp_path, 8)
  with pytest.raises(ValueError, match='is empty; lines of'):
    read_list(tmp_path / 'empty', tmp_path, 8)
  with pytest.raises(FileNotFoundError, match=r'There is no file .*labels\.csv'):
    read_csv(tmp_path / 'labels.csv')
  with pytest.raises(ValueError, match='is empty; rows of'):
    read_csv(tmp_path / 'empty')


@pytest.mark.parametrize('encoding', ['utf-16', 'latin-1'])
def test_files_in_other_encodings_are_named(tmp_path, encoding):
  for read, name in ((read_csv, 'labels.csv'), (lambda path: read_list(path, tmp_path, 2), 'list')):
    (tmp_path / name).write_bytes('a.png 0\nü.png 1\n'.encode(encoding))
    with pytest.raises(ValueError, match=rf'{name}, line [12] is no UTF-8 text; save the file'):
      read(tmp_path / name)


def test_paths_of_lists_may_hold_spaces_and_empty_lines_are_passed_over(tmp_path):
  write_images(tmp_path, ['a b.png', 'c.png'])
  (tmp_path / 'list.txt').write_text('a b.png 1\n\nc.png 0\n')
  files = read_list(tmp_path / 'list.txt', tmp_path, 2)
  assert files.paths == [str(tmp_path / 'a b.png'), str(tmp_path / 'c.png')]
  assert files.labels.tolist() == [1, 0]


def test_rows_of_a_csv_know_their_lines(tmp_path):
  (tmp_path / 'labels.csv').write_text('\ufefflabel, path\n\ncat, a.png\n', encoding='utf-8')
  assert read_csv(tmp_path / 'labels.csv') == [LabelledPath(3, 'a.png', 'cat')]


def test_a_quote_behind_a_space_is_no_letter_of_a_label(tmp_path):
  (tmp_path / 'labels.csv').write_text('path, label\na.png,"x, y"\n \n "b.png", "x, y"\n')
  assert read_csv(tmp_path / 'labels.csv') == [
    LabelledPath(2, 'a.png', 'x, y'),
    LabelledPath(4, 'b.png', 'x, y'),
  ]


@pytest.mark.parametrize('before', ['', '\n', ' \n\n'])
@pytest.mark.parametrize('folder', ['', 'images'])
def test_the_first_image_tells_which_folder_a_list_means(tmp_path, folder, before):
  write_images(tmp_path / folder, ['a.png', 'b.png'])
  (tmp_path / 'list.txt').write_text(f'{before}a.png 0\nb.png 1\n')
  split = ListedSplit(str(tmp_path / 'list.txt'), (str(tmp_path), str(tmp_path / 'images')), 2)
  assert pickle.loads(pickle.dumps(split)) == split
  assert split.open().paths[1] == str(tmp_path / folder / 'b.png')
