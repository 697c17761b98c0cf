"""Lists and CSV files: what they name is read, every mistake is a sentence with its line."""

import pytest
from label_lists import write_images

from glora_jax.vision.data.label_files import LabelledPath, read_csv, read_list


def test_paths_of_lists_may_hold_spaces_and_empty_lines_are_passed_over(tmp_path):
  write_images(tmp_path, ['a b.png', 'c.png'])
  (tmp_path / 'list.txt').write_text('a b.png 1\n\nc.png 0\n')
  files = read_list(str(tmp_path / 'list.txt'), (str(tmp_path),), 2)
  assert files.paths == [str(tmp_path / 'a b.png'), str(tmp_path / 'c.png')]
  assert files.labels.tolist() == [1, 0]


def test_rows_of_a_csv_know_their_lines_and_a_quote_behind_a_space_is_no_letter(tmp_path):
  text = '\ufefflabel, path\n\ncat, a.png\n \n"x, y", "b.png"\n'
  (tmp_path / 'labels.csv').write_text(text, encoding='utf-8')
  assert read_csv(tmp_path / 'labels.csv') == [
    LabelledPath(3, 'a.png', 'cat', cells={'path': 'a.png', 'label': 'cat'}),
    LabelledPath(5, 'b.png', 'x, y', cells={'path': 'b.png', 'label': 'x, y'}),
  ]


@pytest.mark.parametrize('before, folder', [('', ''), ('\n', 'images'), (' \n\n', 'images')])
def test_the_first_image_tells_which_folder_a_list_means(tmp_path, before, folder):
  write_images(tmp_path / folder, ['a.png', 'b.png'])
  (tmp_path / 'list.txt').write_text(f'{before}a.png 0\nb.png 1\n')
  roots = (str(tmp_path), str(tmp_path / 'images'))
  files = read_list(str(tmp_path / 'list.txt'), roots, 2)
  assert files.paths[1] == str(tmp_path / folder / 'b.png')
